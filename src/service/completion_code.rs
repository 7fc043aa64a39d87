//! Completion codes for crowd platforms: what a labeler enters there to show that they have done their quota here.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Services;
use crate::domain::LabelerId;

/// Crockford's alphabet: no letter looks like a digit.
const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// 60 bits.
const LENGTH: usize = 12;

/// The code of a labeler, always the same one; `None` while `labeling.completion_secret` is not set.
pub fn of(services: &Services, labeler: &LabelerId) -> Option<String> {
    let config = services.live().config.clone();
    code(config.labeling.completion_secret.as_deref()?, labeler)
}

/// HMAC-SHA256 of the labeler's id, in groups of four letters.
fn code(secret: &str, labeler: &LabelerId) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(labeler.as_str().as_bytes());
    let digest = mac.finalize().into_bytes();
    let bits = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    let letter = |i: usize| char::from(LETTERS[(bits >> (5 * i)) as usize % LETTERS.len()]);
    let groups = (0..LENGTH / 4).map(|group| (0..4).map(|i| letter(4 * group + i)).collect::<String>());
    Some(groups.collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_differ_by_person_and_by_secret() {
        let of = |secret: &str, id: &str| code(secret, &id.into()).expect("a code");
        let one = of("a secret of the operator", "01A");
        assert_eq!(one, of("a secret of the operator", "01A"));
        assert_ne!(one, of("a secret of the operator", "01B"));
        assert_ne!(one, of("another secret of theirs", "01A"));
        assert_eq!(one.len(), 14);
        assert!(one.split('-').all(|group| group.len() == 4 && group.bytes().all(|b| LETTERS.contains(&b))), "{one}");
    }
}
