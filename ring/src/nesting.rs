//! How deep brackets nest, before a parser that recurses sees them.

/// Returns the depth of brackets outside strings; right up to the first error in the text, where a parser stops.
pub fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_do_not_count() {
        for (text, expected) in
            [("", 0), ("{}", 1), ("[[{}],[]]", 3), (r#""[[[""#, 0), (r#"["\"[[["]"#, 1), ("]]][", 1), ("[[[", 3)]
        {
            assert_eq!(depth(text.as_bytes()), expected, "{text}");
        }
    }
}
