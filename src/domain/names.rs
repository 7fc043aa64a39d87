//! Names that may become parts of paths and URLs.

/// True for names that may be part of a path and of a URL: `[a-z0-9][a-z0-9._-]{0,63}` without `..`.
pub fn is_model_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|b| plain(*b))
        && bytes.len() <= 64
        && bytes.iter().all(|b| plain(*b) || b"._-".contains(b))
        && !name.contains("..")
}

/// True for plain file names, which may be joined to a directory: up to 128 letters, digits, `.`, `_` and `-`, not
/// beginning with a dot.
pub fn is_file_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(fits)
}

/// True for ids that can be the name of a file: true for ids that the server made; a foreign database may hold
/// anything.
pub fn is_path_part(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}
