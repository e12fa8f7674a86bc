//! Entries of `type(1) len(2) data`, the form of metadata and of parameters.

/// Bytes of type and length in front of every entry's data.
pub const ENTRY_HEAD: usize = 3;

/// Iterates over entries. An Err means an entry that does not fit, and is the last item.
#[derive(Debug)]
pub struct Entries<'a>(pub &'a [u8]);

/// An entry's head or data reaches beyond the end.
#[derive(Debug)]
pub struct TruncatedEntry;

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(u8, &'a [u8]), TruncatedEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let &[kind, high, low, ref rest @ ..] = bytes else {
            return Some(Err(TruncatedEntry));
        };
        let Some((data, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low]))) else {
            return Some(Err(TruncatedEntry));
        };
        self.0 = rest;
        Some(Ok((kind, data)))
    }
}

/// Appends an entry. Cuts data of more than 65,535 bytes.
pub fn push(out: &mut Vec<u8>, kind: u8, data: &[u8]) {
    let data = &data[..data.len().min(usize::from(u16::MAX))];
    out.push(kind);
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

pub fn number_u64(data: &[u8]) -> Option<u64> {
    data.try_into().ok().map(u64::from_be_bytes)
}

pub fn number_u8(data: &[u8]) -> Option<u8> {
    data.try_into().ok().map(u8::from_be_bytes)
}

pub fn number_u32(data: &[u8]) -> Option<u32> {
    data.try_into().ok().map(u32::from_be_bytes)
}
