//! A GGUF model in several files: `NAME-00001-of-00003.gguf` and so on, metadata in the first.

use std::path::{Path, PathBuf};

use crate::model::gguf::header::Header;
use crate::model::load::mistakes;
use crate::model::load::{LoadError, map_file};

/// More parts than these are refused as damaged.
const MOST: u64 = 1024;

pub(in crate::model) struct Parts {
    pub paths: Vec<PathBuf>,
    pub maps: Vec<memmap2::Mmap>,
    /// Metadata of the first part, tensors of all.
    pub header: Header,
}

/// Opens the file, and the other parts if it is one of several.
///
/// # Errors
/// `Malformed` when the file is not a GGUF file, `Io` with the name of a missing part.
pub(in crate::model) fn open(path: &Path) -> Result<Parts, LoadError> {
    let (map, header) = one(path)?;
    let count = header.uint("split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(Parts { paths: vec![path.to_owned()], maps: vec![map], header });
    }
    let number = header.uint("split.no").unwrap_or(0) + 1;
    if count > MOST || number > count {
        return Err(LoadError::malformed(path, format!("it says that it is part {number} of {count}")));
    }
    drop((map, header));
    let Some(paths) = names(path, count) else {
        let message = format!(
            "it is part {number} of {count}, and its name does not tell the others': call them \
             NAME-00001-of-{count:05}.gguf and so on"
        );
        return Err(LoadError::malformed(path, message));
    };
    let missing: Vec<usize> = (0..paths.len()).filter(|i| !paths[*i].is_file()).collect();
    if let Some(&first) = missing.first() {
        let named: Vec<String> = missing.iter().take(5).map(|i| (i + 1).to_string()).collect();
        let is = if missing.len() == 1 { "is" } else { "are" };
        let message = format!(
            "it is part {number} of {count}; part {} {is} missing: {}",
            named.join(", "),
            paths[first].display()
        );
        return Err(LoadError::malformed(path, message));
    }
    let (mut maps, mut whole) = (Vec::new(), Header::default());
    for (i, path) in paths.iter().enumerate() {
        let (map, header) = one(path)?;
        let says = (header.uint("split.no").unwrap_or(0), header.uint("split.count").unwrap_or(1));
        if says != (i as u64, count) {
            let message =
                format!("it says that it is part {} of {}, its name says {} of {count}", says.0 + 1, says.1, i + 1);
            return Err(LoadError::malformed(path, message));
        }
        for (name, mut info) in header.tensors {
            info.part = i;
            if whole.tensors.insert(name.clone(), info).is_some() {
                return Err(LoadError::malformed(path, format!("tensor {name:?} is in an earlier part too")));
            }
        }
        if i == 0 {
            whole.metadata = header.metadata;
        }
        maps.push(map);
    }
    Ok(Parts { paths, maps, header: whole })
}

fn one(path: &Path) -> Result<(memmap2::Mmap, Header), LoadError> {
    if std::fs::metadata(path).map_err(|e| LoadError::io(path, e))?.len() == 0 {
        return Err(LoadError::malformed(
            path,
            "not a usable GGUF file: it ends inside its header: it is empty (0 bytes)",
        ));
    }
    let map = map_file(path)?;
    let header = Header::parse(&map).map_err(|e| {
        let what = mistakes::of_model_file(path, &map).unwrap_or(e);
        LoadError::malformed(path, format!("not a usable GGUF file: {what}"))
    })?;
    Ok((map, header))
}

/// The names of all parts, from the name of one.
fn names(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, number) = stem.rsplit_once('-')?;
    number.parse::<u64>().ok().filter(|n| (1..=count).contains(n) && number.len() == 5)?;
    Some((1..=count).map(|i| path.with_file_name(format!("{prefix}-{i:05}-of-{count:05}.gguf"))).collect())
}
