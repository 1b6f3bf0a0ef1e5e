//! The literal paths and folders that rules speak of, for the sensor to register by device and inode.

use std::collections::BTreeSet;

use crate::formula::{Atom, Atoms, FileTest, Formula, Piece, Text};

/// Collects the absolute paths, and the folders above patterns' first `*`, that a condition names.
///
/// The folder of a literal path is named as well: the file may be replaced by another (as `passwd` does with `/etc/shadow`), and
/// the new one is not registered.
pub(super) fn literal(atoms: &Atoms, formula: &Formula, into: &mut BTreeSet<String>) {
    let mut used = BTreeSet::new();
    formula.atoms(&mut used);
    for atom in used {
        if let Atom::File(tests) = &**atoms.atom(atom) {
            into.extend(tests.iter().flat_map(of));
        }
    }
}

fn of((text, pattern): &FileTest) -> Vec<String> {
    let (Text::Path, Some(Piece::Bytes(first))) = (text, pattern.first()) else { return vec![] };
    let Ok(first) = std::str::from_utf8(first) else { return vec![] };
    let Some((folder, name)) = first.rsplit_once('/').filter(|_| first.starts_with('/')) else {
        return vec![];
    };
    let mut names = Vec::new();
    // The root folder is everybody's; what lies in it directly is named by itself.
    if !folder.is_empty() {
        names.push(folder.to_owned());
    }
    if pattern.len() == 1 && !name.is_empty() {
        names.push(first.to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::Pattern;

    #[test]
    fn literal_paths_and_folders() {
        let bytes = |text: &str| Piece::Bytes(text.as_bytes().to_vec());
        let names = |text: Text, pattern: Pattern| of(&(text, pattern));
        assert_eq!(names(Text::Path, vec![bytes("/etc/shadow")]), ["/etc", "/etc/shadow"]);
        assert_eq!(names(Text::Path, vec![bytes("/etc/ssh/"), Piece::Any]), ["/etc/ssh"]);
        assert_eq!(names(Text::Path, vec![bytes("/etc/cron"), Piece::Any]), ["/etc"]);
        assert_eq!(names(Text::Path, vec![bytes("/swap")]), ["/swap"]);
        for pattern in
            [vec![bytes("/"), Piece::Any], vec![Piece::Any, bytes("/x")], vec![], vec![bytes("@a/b")]]
        {
            assert_eq!(names(Text::Path, pattern), Vec::<String>::new());
        }
        assert_eq!(names(Text::Name, vec![bytes("/etc/shadow")]), Vec::<String>::new());
    }
}
