//! Where the lines of a file begin, so that a place is found without reading the file again.

/// Bytes between two places whose characters are counted.
const STRIDE: usize = 1024;

/// The lines of one text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lines {
    /// The first byte of each line.
    starts: Vec<usize>,
    /// Characters before each [`STRIDE`]th byte: a file may be one single line.
    characters: Vec<usize>,
}

impl Lines {
    /// Of this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let bytes = text.bytes().enumerate();
        let ends = bytes.filter(|(_, byte)| *byte == b'\n');
        let starts = [0].into_iter().chain(ends.map(|(at, _)| at + 1)).collect();
        let mut total = 0;
        let strides = text.as_bytes().chunks(STRIDE).map(|stride| {
            let before = total;
            total += count(stride);
            before
        });
        Self {
            characters: strides.collect(),
            starts,
        }
    }

    /// Line and column (both from 1, columns in characters) of a byte of `text`, which must be the
    /// text that this was made of.
    #[must_use]
    pub fn position(&self, text: &str, byte: usize) -> (usize, usize) {
        let byte = byte.min(text.len());
        let line = self.starts.partition_point(|start| *start <= byte);
        let start = self.starts[..line].last().copied().unwrap_or_default();
        let column = self.characters_before(text, byte) - self.characters_before(text, start);
        (line, column + 1)
    }

    fn characters_before(&self, text: &str, byte: usize) -> usize {
        let stride = (byte / STRIDE).min(self.characters.len().saturating_sub(1));
        let before = self.characters.get(stride).copied().unwrap_or_default();
        let rest = text.as_bytes().get(stride * STRIDE..byte);
        before + rest.map_or(0, count)
    }
}

/// Characters that begin in these bytes: continuation bytes do not begin any.
fn count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_lines_and_characters() {
        let text = "ab\nä€c\r\n\n";
        let lines = Lines::new(text);
        let places = |bytes: &[usize]| -> Vec<_> {
            let places = bytes.iter().map(|byte| lines.position(text, *byte));
            places.collect()
        };
        assert_eq!(places(&[0, 2, 3]), [(1, 1), (1, 3), (2, 1)]);
        let c = text.find('c').unwrap();
        assert_eq!(
            places(&[5, c, c + 3, c + 4]),
            [(2, 2), (2, 3), (3, 1), (4, 1)]
        );
        assert_eq!(lines.position(text, 1000), (4, 1), "past the end");
        assert_eq!(Lines::new("").position("", 0), (1, 1));
    }

    #[test]
    fn columns_of_long_lines_are_right() {
        let text = format!("x\n{}", "é".repeat(3 * STRIDE));
        let lines = Lines::new(&text);
        for character in [0, 1, 511, 512, 1023, 1024, 3 * STRIDE] {
            assert_eq!(lines.position(&text, 2 + 2 * character), (2, character + 1));
        }
    }
}
