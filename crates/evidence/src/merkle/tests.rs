//! Known answers of the Certificate Transparency reference implementation, and properties.

use super::*;
use proptest::prelude::*;

const LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
/// Roots over the first 1, 2, … of [`LEAVES`].
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn hashes(n: usize) -> Vec<Hash> {
    (0..n).map(|i| leaf_hash(&i.to_le_bytes())).collect()
}

#[test]
fn roots_match_the_reference() {
    assert_eq!(hex::encode(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    let leaves: Vec<Hash> = LEAVES.iter().map(|h| leaf_hash(&hex::decode(h).unwrap())).collect();
    let mut frontier = Frontier::new();
    assert_eq!(frontier.root(), empty_root());
    for (i, expected) in ROOTS.iter().enumerate() {
        frontier.push(leaves[i]);
        assert_eq!(hex::encode(frontier.root()), *expected);
        assert_eq!(hex::encode(root(&leaves[..=i])), *expected);
    }
}

#[test]
fn proofs_match_the_reference() {
    let leaves: Vec<Hash> = LEAVES.iter().map(|h| leaf_hash(&hex::decode(h).unwrap())).collect();
    let path: Vec<String> = inclusion_proof(&leaves, 5).unwrap().iter().map(hex::encode).collect();
    assert_eq!(
        path,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    let path: Vec<String> = consistency_proof(&leaves, 6).unwrap().iter().map(hex::encode).collect();
    assert_eq!(
        path,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

#[test]
fn every_small_tree_proves_itself_and_nothing_else() {
    for n in 1..34usize {
        let leaves = hashes(n);
        let top = root(&leaves);
        for i in 0..n {
            let proof = inclusion_proof(&leaves, i).unwrap();
            let check = |index: usize, leaf: &Hash, proof: &[Hash]| {
                verify_inclusion(index as u64, n as u64, leaf, proof, &top)
            };
            assert!(check(i, &leaves[i], &proof));
            assert!(!check(i, &leaf_hash(b"other"), &proof));
            assert!(!check((i + 1) % n.max(2), &leaves[i], &proof));
            if let Some((_, shorter)) = proof.split_last() {
                assert!(!check(i, &leaves[i], shorter));
            }
            let mut longer = proof.clone();
            longer.push(top);
            assert!(!check(i, &leaves[i], &longer));
        }
        for old in 1..=n {
            let proof = consistency_proof(&leaves, old).unwrap();
            let old_root = root(&leaves[..old]);
            assert!(verify_consistency(old as u64, n as u64, &old_root, &top, &proof), "{old} of {n}");
            assert!(!verify_consistency(old as u64, n as u64, &leaf_hash(b"x"), &top, &proof));
            assert!(!verify_consistency(old as u64, n as u64, &old_root, &leaf_hash(b"x"), &proof));
            let mut longer = proof.clone();
            longer.push(top);
            assert!(!verify_consistency(old as u64, n as u64, &old_root, &top, &longer));
        }
        assert!(inclusion_proof(&leaves, n).is_none());
        assert!(consistency_proof(&leaves, 0).is_none() && consistency_proof(&leaves, n + 1).is_none());
    }
}

proptest! {
    #[test]
    fn the_frontier_is_the_tree(n in 0usize..600) {
        let leaves = hashes(n);
        let mut frontier = Frontier::new();
        for leaf in &leaves {
            frontier.push(*leaf);
            let again = Frontier::from_bytes(frontier.size(), &frontier.to_bytes());
            prop_assert_eq!(again.as_ref(), Some(&frontier));
        }
        prop_assert_eq!(frontier.root(), root(&leaves));
        prop_assert!(Frontier::from_bytes(n as u64 + 1, &[0; 31]).is_none());
    }

    #[test]
    fn forged_proofs_are_refused(n in 2usize..200, i in 0usize..200, at in 0usize..10, bit in 0usize..256) {
        let leaves = hashes(n);
        let i = i % n;
        let mut proof = inclusion_proof(&leaves, i).unwrap();
        let at = at % proof.len();
        proof[at][bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!verify_inclusion(i as u64, n as u64, &leaves[i], &proof, &root(&leaves)));
    }
}
