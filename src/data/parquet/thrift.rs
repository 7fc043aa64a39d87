//! The part of Thrift's compact protocol that the limits need: page headers, and a check of the footer, which refuses
//! one that would make the Parquet crate allocate or recurse without limit.

/// A result with an error message about malformed or too large data.
pub(super) type Outcome<T> = Result<T, String>;

/// Longest list in a footer: columns, row groups, key-value pairs.
const MAX_LIST: usize = 200_000;
/// Columns and groups of a schema.
const MAX_SCHEMA: usize = 4096;
/// Groups inside groups.
const MAX_DEPTH: usize = 48;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const STRUCT: u8 = 12;

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Outcome<u8> {
        let byte = *self.bytes.get(self.at).ok_or("ends too early")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Outcome<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("holds a number without an end".into())
    }

    fn int(&mut self) -> Outcome<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    fn int32(&mut self) -> Outcome<i32> {
        i32::try_from(self.int()?).map_err(|_| "holds a number that is too large".to_owned())
    }

    /// The next field's (id, type); `None` at the end of the structure.
    fn field(&mut self, last: &mut i64) -> Outcome<Option<(i64, u8)>> {
        let head = self.byte()?;
        if head & 0x0f == 0 {
            return Ok(None);
        }
        *last = if head >> 4 == 0 { self.int()? } else { last.saturating_add(i64::from(head >> 4)) };
        Ok(Some((*last, head & 0x0f)))
    }

    /// (length, element type) of a list. Every element has at least one byte.
    fn list(&mut self) -> Outcome<(usize, u8)> {
        let head = self.byte()?;
        let length = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        let left = self.bytes.len().saturating_sub(self.at);
        let length = usize::try_from(length).ok().filter(|n| *n <= left.min(MAX_LIST));
        Ok((length.ok_or("holds a list that is too long")?, head & 0x0f))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Outcome<()> {
        if depth == 0 {
            return Err("is nested too deeply".into());
        }
        match kind {
            1 | 2 => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.varint()?),
            7 => self.jump(8)?,
            8 => {
                let length = self.varint()?;
                self.jump(length)?;
            }
            9 | 10 => {
                let (length, kind) = self.list()?;
                for _ in 0..length {
                    // Booleans in a list take one byte each.
                    self.skip(if matches!(kind, 1 | 2) { 3 } else { kind }, depth - 1)?;
                }
            }
            11 => {
                let length = self.varint()?;
                if length > MAX_LIST as u64 {
                    return Err("holds a map that is too long".into());
                }
                let kinds = if length > 0 { self.byte()? } else { 0 };
                for _ in 0..length {
                    self.skip(kinds >> 4, depth - 1)?;
                    self.skip(kinds & 0x0f, depth - 1)?;
                }
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip(kind, depth - 1)?;
                }
            }
            other => return Err(format!("holds a value of the unknown type {other}")),
        }
        Ok(())
    }

    fn jump(&mut self, bytes: u64) -> Outcome<()> {
        let left = self.bytes.len().saturating_sub(self.at) as u64;
        if bytes > left {
            return Err("ends too early".into());
        }
        self.at += bytes as usize;
        Ok(())
    }
}

/// Kinds of pages, by the number in the header.
pub(super) const DATA: i32 = 0;
pub(super) const INDEX: i32 = 1;
pub(super) const DICTIONARY: i32 = 2;
pub(super) const DATA_V2: i32 = 3;

/// A page header.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PageHeader {
    pub kind: i32,
    pub unpacked: i32,
    pub packed: i32,
    pub values: i32,
    pub encoding: i32,
    pub def_encoding: i32,
    pub rep_encoding: i32,
    pub nulls: i32,
    pub rows: i32,
    pub def_bytes: i32,
    pub rep_bytes: i32,
    pub is_packed: bool,
}

/// The header at the start of `bytes`, and its length.
pub(super) fn page_header(bytes: &[u8]) -> Outcome<(PageHeader, usize)> {
    let mut reader = Reader { bytes, at: 0 };
    let mut page = PageHeader { kind: -1, values: -1, is_packed: true, ..PageHeader::default() };
    let mut last = 0;
    while let Some((id, kind)) = reader.field(&mut last)? {
        match (id, kind) {
            (1, 5) => page.kind = reader.int32()?,
            (2, 5) => page.unpacked = reader.int32()?,
            (3, 5) => page.packed = reader.int32()?,
            (5 | 7 | 8, STRUCT) => {
                let mut inner = 0;
                while let Some((field, kind)) = reader.field(&mut inner)? {
                    let target = match (id, field) {
                        (_, 1) => &mut page.values,
                        (5 | 7, 2) | (8, 4) => &mut page.encoding,
                        (5, 3) => &mut page.def_encoding,
                        (5, 4) => &mut page.rep_encoding,
                        (8, 2) => &mut page.nulls,
                        (8, 3) => &mut page.rows,
                        (8, 5) => &mut page.def_bytes,
                        (8, 6) => &mut page.rep_bytes,
                        (8, 7) if matches!(kind, 1 | 2) => {
                            page.is_packed = kind == 1;
                            continue;
                        }
                        _ => {
                            reader.skip(kind, 16)?;
                            continue;
                        }
                    };
                    if kind != 5 {
                        return Err("holds a field of the wrong type".into());
                    }
                    *target = reader.int32()?;
                }
            }
            (_, kind) => reader.skip(kind, 16)?,
        }
    }
    let numbers = [page.unpacked, page.packed, page.values, page.nulls, page.rows, page.def_bytes, page.rep_bytes];
    if numbers.iter().any(|n| *n < 0) {
        return Err("holds a negative or missing size".into());
    }
    Ok((page, reader.at))
}

/// Checks a file's footer: its lists have the stated lengths, and its schema is neither too deep nor too wide.
pub(super) fn check_footer(footer: &[u8]) -> Outcome<()> {
    let mut reader = Reader { bytes: footer, at: 0 };
    let mut last = 0;
    while let Some((id, kind)) = reader.field(&mut last)? {
        if (id, kind) != (2, 9) {
            reader.skip(kind, 32)?;
            continue;
        }
        let (length, element) = reader.list()?;
        if element != STRUCT || length > MAX_SCHEMA {
            return Err(format!("has a schema of more than {MAX_SCHEMA} columns"));
        }
        // Number of missing children of each open group.
        let mut open: Vec<i64> = Vec::new();
        for _ in 0..length {
            let (mut inner, mut children) = (0, 0);
            while let Some((field, kind)) = reader.field(&mut inner)? {
                if (field, kind) == (5, 5) { children = reader.int()? } else { reader.skip(kind, 16)? }
            }
            if let Some(left) = open.last_mut() {
                *left -= 1;
            }
            if !(0..=MAX_SCHEMA as i64).contains(&children) {
                return Err("has a group with an impossible number of columns".into());
            }
            if children > 0 {
                open.push(children);
            }
            if open.len() > MAX_DEPTH {
                return Err(format!("has a schema more than {MAX_DEPTH} groups deep"));
            }
            while open.last().is_some_and(|left| *left <= 0) {
                open.pop();
            }
        }
    }
    Ok(())
}
