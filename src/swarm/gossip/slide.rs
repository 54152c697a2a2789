//! How one window became another, so that only its ends need be told.

use crate::chunk::Run;

/// How a window became another: entries dropped in front, the front entry's first block, entries added.
pub fn slide(before: &[Run], after: &[Run]) -> (u16, u32, Vec<Run>) {
    let front = after.first().map_or(0, |run| run.first);
    let (dropped, added) = moved_on(before, after).unwrap_or((before.len(), after.to_vec()));
    (u16::try_from(dropped).expect("windows have at most 256 entries"), front, added)
}

/// Entries dropped and added if the window just moved on; then all others need not be said again.
fn moved_on(before: &[Run], after: &[Run]) -> Option<(usize, Vec<Run>)> {
    let front = after.first()?;
    let same = |old: &Run| old.object == front.object && old.first <= front.first && front.first < old.end();
    let dropped = before.iter().position(same)?;
    let kept = &before[dropped..];
    if after.len() < kept.len() {
        return None;
    }
    let mut added = Vec::new();
    for (index, run) in after.iter().enumerate() {
        let Some(old) = kept.get(index) else {
            added.push(*run);
            continue;
        };
        let first = if index == 0 { front.first } else { old.first };
        // Only the last entry known may have grown.
        let grown = index + 1 == kept.len() && run.end() > old.end();
        if run.object != old.object || run.first != first || (run.end() != old.end() && !grown) {
            return None;
        }
        if grown {
            added.push(Run { object: run.object, first: old.end(), count: run.end() - old.end() });
        }
    }
    Some((dropped, added))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ObjectId;

    fn run(object: u8, first: u32, end: u32) -> Run {
        Run { object: ObjectId([object; 16]), first, count: end - first }
    }

    #[test]
    fn a_window_that_moves_on_is_told_by_its_ends() {
        let before = [run(1, 0, 100), run(2, 0, 50)];
        assert_eq!(slide(&before, &[run(1, 10, 100), run(2, 0, 60)]), (0, 10, vec![run(2, 50, 60)]));
        assert_eq!(slide(&before, &[run(2, 5, 50), run(3, 0, 9)]), (1, 5, vec![run(3, 0, 9)]));
        assert_eq!(slide(&before, &[]), (2, 0, vec![]));
        assert_eq!(slide(&[], &before), (0, 0, before.to_vec()));
        assert_eq!(slide(&before, &before), (0, 0, vec![]));
    }

    #[test]
    fn a_window_that_jumps_is_told_anew() {
        let before = [run(1, 10, 100), run(2, 0, 50)];
        for (after, why) in [
            (vec![run(1, 0, 100), run(2, 0, 50)], "backwards"),
            (vec![run(1, 20, 90)], "shorter"),
            (vec![run(3, 0, 1)], "elsewhere"),
            (vec![run(1, 20, 100), run(3, 0, 50)], "another end"),
        ] {
            assert_eq!(slide(&before, &after), (2, after[0].first, after), "{why}");
        }
    }
}
