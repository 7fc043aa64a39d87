//! SHA-256 of bytes, streams and files, as lower-case hexadecimal.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The SHA-256 of bytes.
pub fn of_bytes(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The SHA-256 of everything that `reader` yields, and its length in bytes.
///
/// # Errors
/// When the reader fails.
pub fn of_reader(reader: &mut impl Read) -> io::Result<(String, u64)> {
    let (mut hash, mut buffer, mut bytes) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex::encode(hash.finalize()), bytes)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The SHA-256 and the length of a file.
///
/// # Errors
/// When the file cannot be opened or read.
pub fn of_file(path: &Path) -> io::Result<(String, u64)> {
    of_reader(&mut File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of FIPS 180-4.
    #[test]
    fn known_hashes() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of_bytes(""), empty);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_reader(&mut &b"abc"[..]).expect("readable"), (abc.to_owned(), 3));
        let million = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        std::fs::write(&path, vec![b'a'; 1_000_000]).expect("written");
        assert_eq!(of_file(&path).expect("readable"), (million.to_owned(), 1_000_000));
    }
}
