//! The number of values in a row, and the amount of text in a delta encoding, determined from a page's bytes without
//! decoding it: both can be huge in a page of a few bytes.

/// Most values of a delta-packed sequence that are read.
const MAX_DELTAS: u64 = 4 << 20;

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Number `i` of `width` bits in a little-endian row of them.
fn bits(bytes: &[u8], i: usize, width: usize) -> u64 {
    (0..width).fold(0, |value, b| {
        let bit = i * width + b;
        let one = bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
        value | u64::from(one) << b
    })
}

/// The most values of one row among the repetition levels (runs and packed groups); `open` is the number of values of
/// the incomplete row. `None` when the levels are damaged.
pub(super) fn longest_row(mut levels: &[u8], max_rep: i16, values: u64, open: &mut u64) -> Option<u64> {
    let width = (16 - max_rep.cast_unsigned().leading_zeros()) as usize;
    let (mut left, mut most) = (values, *open);
    while left > 0 {
        let head = varint(&mut levels)?;
        if head & 1 == 0 {
            let (value, rest) = levels.split_at_checked(width.div_ceil(8))?;
            levels = rest;
            let count = (head >> 1).min(left);
            if count == 0 {
                return None;
            }
            *open = if value.iter().all(|b| *b == 0) { 1 } else { open.saturating_add(count) };
            most = most.max(*open);
            left -= count;
        } else {
            let bytes = usize::try_from((head >> 1).checked_mul(width as u64)?).ok()?;
            // The last group may be shorter.
            let (group, rest) = levels.split_at_checked(bytes.min(levels.len()))?;
            levels = rest;
            let count = ((group.len() * 8 / width) as u64).min(left);
            if count == 0 {
                return None;
            }
            for i in 0..count as usize {
                *open = if bits(group, i, width) == 0 { 1 } else { *open + 1 };
                most = most.max(*open);
            }
            left -= count;
        }
    }
    Some(most)
}

/// The number of values in a delta-packed sequence, and their sum.
pub(super) fn delta_sum(mut bytes: &[u8]) -> Option<(u64, u64)> {
    let (block, parts) = (varint(&mut bytes)?, varint(&mut bytes)?);
    let (count, first) = (varint(&mut bytes)?, varint(&mut bytes)?);
    let zigzag = |raw: u64| (raw >> 1).cast_signed() ^ -((raw & 1).cast_signed());
    if parts == 0 || parts > 512 || block == 0 || block > 1 << 20 || block % parts != 0 || count > MAX_DELTAS {
        return None;
    }
    let each = (block / parts) as usize;
    let mut value = zigzag(first);
    let mut sum = if count > 0 { u64::try_from(value).ok()? } else { 0 };
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let least = zigzag(varint(&mut bytes)?);
        let (widths, rest) = bytes.split_at_checked(parts as usize)?;
        bytes = rest;
        for width in widths {
            if left == 0 {
                break;
            }
            let width = usize::from(*width);
            if width > 64 {
                return None;
            }
            // The last part may be shorter.
            let (part, rest) = bytes.split_at_checked((each * width).div_ceil(8).min(bytes.len()))?;
            bytes = rest;
            for i in 0..each.min(left as usize) {
                value = value.checked_add(least)?.checked_add(i64::try_from(bits(part, i, width)).ok()?)?;
                sum = sum.checked_add(u64::try_from(value).ok()?)?;
            }
            left -= (each as u64).min(left);
        }
    }
    Some((count, sum))
}

/// Length of the longest text of a dictionary of plain texts.
pub(super) fn longest_text(mut dictionary: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((length, rest)) = dictionary.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        longest = longest.max(length.min(rest.len()) as u64);
        dictionary = rest.get(length..).unwrap_or_default();
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_over_runs_groups_and_pages() {
        // A packed group of eight: 0 1 1 0 1 1 1 1, then a run of 20 ones.
        let mut open = 0;
        assert_eq!(longest_row(&[0x03, 0b1111_0110, 40, 1], 1, 28, &mut open), Some(25));
        // The next page goes on with the same row.
        assert_eq!(longest_row(&[20, 1], 1, 10, &mut open), Some(35));
        // A run of zeros is rows of one value each.
        assert_eq!(longest_row(&[0xfe, 0xff, 0x7f, 0], 1, 1_000_000, &mut open), Some(35));
        assert_eq!(open, 1);
        assert_eq!(longest_row(&[0], 1, 5, &mut open), None);
        assert_eq!(longest_row(&[], 1, 5, &mut open), None);
    }

    #[test]
    fn delta_packed_numbers_are_summed() {
        // Block of 128 in 4 parts; 5 numbers: 1, 3, 5, 7, 9, all steps 2.
        assert_eq!(delta_sum(&[0x80, 1, 4, 5, 2, 4, 0, 0, 0, 0]), Some((5, 25)));
        // A million times 2^30 in fourteen bytes.
        assert_eq!(delta_sum(&[0x80, 1, 4, 2, 0x80, 0x80, 0x80, 0x80, 8, 0, 0, 0, 0, 0]), Some((2, 2 << 30)));
        assert_eq!(delta_sum(&[0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 0x7f, 2]), None);
    }

    #[test]
    fn the_longest_text_is_found() {
        assert_eq!(longest_text(b"\x01\0\0\0a\x03\0\0\0bcd\x02\0\0\0ef"), 3);
        assert_eq!(longest_text(b"\xff\xff\xff\xffab"), 2);
    }
}
