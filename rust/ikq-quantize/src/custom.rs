//! Custom rules: `pattern=type`, as `--custom-q`, `--tensor-type` and recipe files have them.

use std::path::Path;

use ikq_formats::QuantType;
use regex::Regex;

use crate::error::Error;

/// One `pattern=type`.
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
    pub fn parse_file(path: &Path, text: &str) -> Result<Vec<CustomRule>, Error> {
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
            shown(CustomRule::parse_file(Path::new("r"), file)),
            ["attn_v=q8_0", "attn_k=q8_0", "blk\\.[0-9]{1,2}\\.ffn=iq4_ks"]
        );
    }

    #[test]
    fn faults_are_named() {
        let message = |r: Result<Vec<CustomRule>, Error>| r.expect_err("invalid").to_string();
        assert!(message(CustomRule::parse_list("attn_q:q8_0")).contains("no `=`"));
        assert!(message(CustomRule::parse_list("attn_(q=q8_0")).contains("attn_(q"));
        assert!(message(CustomRule::parse_list("attn_q=q9_0")).contains("did you mean"));
        let in_file = message(CustomRule::parse_file(Path::new("my.recipe"), "a=q8_0\n\nb=q9_0\n"));
        assert!(in_file.contains("my.recipe, line 3") && in_file.contains("q9_0"), "{in_file}");
    }
}
