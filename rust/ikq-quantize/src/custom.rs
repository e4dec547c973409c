//! Custom rules: `pattern=type`, as `--custom-q`, `--tensor-type` and recipe files have them.

use std::path::Path;

use ikq_formats::QuantType;
use regex::Regex;

use crate::error::Error;

/// One rule of the user: `pattern=type`.
#[derive(Clone, Debug)]
pub struct CustomRule {
    /// Searched anywhere in a tensor's name.
    pub pattern: Regex,
    pub ty: QuantType,
}

impl CustomRule {
    /// Parses `re=type,re=type,...`; a pattern cannot contain a comma, and its last `=` ends it.
    ///
    /// # Errors
    /// A part without `=`, a regular expression that is none, an unknown type.
    pub fn parse_list(text: &str) -> Result<Vec<CustomRule>, Error> {
        let parts = text.split(',').map(str::trim).filter(|p| !p.is_empty());
        parts.map(CustomRule::parse).collect()
    }

    /// Parses one `re=type`; the pattern may contain commas.
    ///
    /// # Errors
    /// As [`CustomRule::parse_list`].
    pub fn parse(part: &str) -> Result<CustomRule, Error> {
        let bad = |why: String| Error::CustomRule { rule: part.to_string(), why };
        let (pattern, ty) = part.rsplit_once('=').ok_or_else(|| bad("there is no `=`".into()))?;
        let ty = QuantType::parse(ty)?;
        let pattern = Regex::new(pattern).map_err(|e| bad(e.to_string().replace('\n', " ")))?;
        Ok(CustomRule { pattern, ty })
    }

    /// Parses the text of a recipe file: a rule or a list of rules per line; blank lines and what follows
    /// `#` do not count. A line is a list if all its parts between commas are rules.
    ///
    /// # Errors
    /// As [`CustomRule::parse_list`], with the file's name and the number of the line.
    pub fn parse_file(path: &Path, bytes: &[u8]) -> Result<Vec<CustomRule>, Error> {
        let text = text_of(bytes).map_err(|(line, why)| {
            let rule =
                String::from_utf8_lossy(bytes.split(|b| *b == b'\n').nth(line - 1).unwrap_or_default())
                    .trim()
                    .to_string();
            Error::RuleLine {
                path: path.to_path_buf(),
                line,
                error: Box::new(Error::CustomRule { rule, why }),
            }
        })?;
        let mut rules = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim().trim_matches(',').trim();
            if line.is_empty() {
                continue;
            }
            match (CustomRule::parse_list(line), CustomRule::parse(line)) {
                (Ok(list), _) => rules.extend(list),
                (Err(_), Ok(rule)) => rules.push(rule),
                (Err(e), Err(_)) => {
                    let path = path.to_path_buf();
                    return Err(Error::RuleLine { path, line: number + 1, error: Box::new(e) });
                }
            }
        }
        Ok(rules)
    }
}

/// A file's text, in UTF-8 or in UTF-16 that says so, without a byte order mark; else the line that is neither, and why.
fn text_of(bytes: &[u8]) -> Result<String, (usize, String)> {
    let line_at = |text: &[u8]| text.iter().filter(|b| **b == b'\n').count() + 1;
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => {
            let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
            let text = std::str::from_utf8(bytes).map_err(|e| {
                let at = e.valid_up_to();
                (
                    line_at(&bytes[..at]),
                    format!("byte 0x{:02x} is not UTF-8: save the file as UTF-8", bytes[at]),
                )
            })?;
            return match text.find('\0') {
                Some(at) => Err((line_at(&bytes[..at]), "a NUL: this is not a text file".to_string())),
                None => Ok(text.to_string()),
            };
        }
    };
    let units: Vec<u16> = bytes[2..].as_chunks().0.iter().map(|b| unit(*b)).collect();
    String::from_utf16(&units).map_err(|e| (1, format!("{e}: save the file as UTF-8")))
}

impl std::fmt::Display for CustomRule {
    /// As it was written, the type in lower case.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.pattern.as_str(), self.ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rules: Result<Vec<CustomRule>, Error>) -> Vec<String> {
        rules.expect("valid").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lists_and_files_are_read() {
        assert_eq!(shown(CustomRule::parse_list(" a=q8_0, b.*=Q4_K,")), ["a=q8_0", "b.*=q4_k"]);
        let file = "# attention\nattn_v=q8_0,attn_k=q8_0   # small\n\n  blk\\.[0-9]{1,2}\\.ffn=iq4_ks,\n";
        assert_eq!(
            shown(CustomRule::parse_file(Path::new("r"), file.as_bytes())),
            ["attn_v=q8_0", "attn_k=q8_0", "blk\\.[0-9]{1,2}\\.ffn=iq4_ks"]
        );
    }

    #[test]
    fn files_of_other_systems_are_read() {
        let text = "# é\r\nattn_v=q8_0\r\nattn_k=q6_k";
        let wide = |mark: [u8; 2], unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            mark.into_iter().chain(text.encode_utf16().flat_map(unit)).collect()
        };
        let marked = [b"\xef\xbb\xbf", text.as_bytes()].concat();
        for bytes in [marked, wide([0xff, 0xfe], u16::to_le_bytes), wide([0xfe, 0xff], u16::to_be_bytes)] {
            let found = shown(CustomRule::parse_file(Path::new("r"), &bytes));
            assert_eq!(found, ["attn_v=q8_0", "attn_k=q6_k"]);
        }
        for (bytes, why) in
            [(&b"a=q8_0\n# \xe9\n"[..], "0xe9 is not UTF-8"), (b"a=q8_0\nb\0=q8_0\n", "a NUL")]
        {
            let message = CustomRule::parse_file(Path::new("r"), bytes).expect_err("no text").to_string();
            assert!(message.contains("r, line 2") && message.contains(why), "{message}");
        }
    }

    #[test]
    fn faults_are_named() {
        let message = |r: Result<Vec<CustomRule>, Error>| r.expect_err("invalid").to_string();
        assert!(message(CustomRule::parse_list("attn_q:q8_0")).contains("no `=`"));
        assert!(message(CustomRule::parse_list("attn_(q=q8_0")).contains("attn_(q"));
        assert!(message(CustomRule::parse_list("attn_q=q9_0")).contains("did you mean"));
        let in_file = message(CustomRule::parse_file(Path::new("my.recipe"), b"a=q8_0\n\nb=q9_0\n"));
        assert!(in_file.contains("my.recipe, line 3") && in_file.contains("q9_0"), "{in_file}");
    }
}
