//! The alphabet of byte-level BPE: GPT-2 writes every byte as one printable character.

/// The byte that a character of the alphabet stands for: printable Latin-1 characters stand for
/// themselves, the 68 other bytes for U+0100 … U+0143 in ascending order.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The bytes of a token. A token with characters outside the alphabet (an added one) is plain text.
pub(super) fn decode(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character() {
        let alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        let mut seen: Vec<u8> = alphabet.iter().filter_map(|c| byte_of(*c)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(decode("Ġhello"), b" hello");
        assert_eq!(decode("ðŁĺĢ"), "😀".as_bytes());
        assert_eq!(decode("<中>"), "<中>".as_bytes());
    }
}
