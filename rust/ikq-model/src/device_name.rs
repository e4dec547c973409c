//! Names of devices, as users write them: [`DeviceName`]; and the devices of a model: [`Devices`].

use std::fmt;

use crate::error::Error;
use crate::placement::Override;

/// A device by its name: `CPU`; `CPU1`, `CPU2`, ..., which are the CPU again with memory of their own; `CUDA0`, `CUDA1`,
/// ..., which are GPUs. Letters of either case mean the same, and so do zeros before a number; texts have capitals and none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// 0 is the CPU itself.
    Cpu(usize),
    Cuda(usize),
}

impl DeviceName {
    /// The device of this name, whether this machine has it or not.
    ///
    /// # Errors
    /// Which names there are, for others.
    pub fn parse(text: &str) -> Result<DeviceName, String> {
        // `str::parse` would take a sign, too
        let number =
            |rest: &str| rest.bytes().all(|b| b.is_ascii_digit()).then(|| rest.parse().ok()).flatten();
        let name = text.trim().to_ascii_uppercase();
        let found = match (name.strip_prefix("CUDA"), name.strip_prefix("CPU")) {
            (Some(rest), _) => number(rest).map(DeviceName::Cuda),
            (None, Some("")) => Some(DeviceName::Cpu(0)),
            (None, Some(rest)) => number(rest).map(DeviceName::Cpu),
            (None, None) => None,
        };
        found.ok_or_else(|| {
            let named = if name.is_empty() {
                "no device is named".into()
            } else {
                format!("there is no device {text}")
            };
            format!("{named}; there are CPU, CPU1, ..., and GPUs, CUDA0, ...")
        })
    }

    /// The number of a GPU; `None` for others.
    pub fn gpu(self) -> Option<usize> {
        match self {
            DeviceName::Cuda(index) => Some(index),
            DeviceName::Cpu(_) => None,
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu(0) => write!(f, "CPU"),
            DeviceName::Cpu(n) => write!(f, "CPU{n}"),
            DeviceName::Cuda(n) => write!(f, "CUDA{n}"),
        }
    }
}

/// The devices of a model, the CPU first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices {
    pub names: Vec<DeviceName>,
    /// The last so many are there because rules name them: layers of `n_gpu_layers` are not theirs.
    pub n_of_rules: usize,
}

impl Devices {
    /// The devices that a list names, where the CPU need not be named, and those that only rules name. `none` alone is the
    /// CPU alone.
    ///
    /// # Errors
    /// [`Error::Option`] for names that are none, and for a device that is named twice.
    pub fn new(named: &[String], rules: &[Override]) -> Result<Devices, Error> {
        let wrong = |why: String| Error::Option { option: "devices", value: named.join(","), why };
        let mut names = vec![DeviceName::Cpu(0)];
        let is_none = matches!(named, [only] if only.trim().eq_ignore_ascii_case("none"));
        for (i, text) in named.iter().enumerate().filter(|_| !is_none) {
            let name = DeviceName::parse(text).map_err(wrong)?;
            let is_twice = named[..i].iter().any(|other| DeviceName::parse(other) == Ok(name));
            if is_twice {
                return Err(wrong(format!("{name} stands there twice")));
            }
            if name != DeviceName::Cpu(0) {
                names.push(name);
            }
        }
        let n_named = names.len();
        for (_, name) in rules {
            if !names.contains(name) {
                names.push(*name);
            }
        }
        Ok(Devices { n_of_rules: names.len() - n_named, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(named: &[&str], rules: &str) -> Result<(Vec<String>, usize), String> {
        let named: Vec<String> = named.iter().map(ToString::to_string).collect();
        let mut read = crate::placement::Rules::default();
        if !rules.is_empty() {
            read.add_overrides(rules).expect("rules");
        }
        let found = Devices::new(&named, &read.overrides).map_err(|e| e.to_string())?;
        Ok((found.names.iter().map(ToString::to_string).collect(), found.n_of_rules))
    }

    #[test]
    fn names_have_one_spelling() {
        for (text, name) in [("cuda0", "CUDA0"), ("CUDA00", "CUDA0"), (" Cuda12 ", "CUDA12"), ("cpu", "CPU")]
        {
            assert_eq!(DeviceName::parse(text).map(|n| n.to_string()), Ok(name.to_string()));
        }
        assert_eq!(DeviceName::parse("cpu0"), Ok(DeviceName::Cpu(0)));
        for text in
            ["CUDA", "CUDA+0", "CUDA-1", "CUDA0x", "GPU0", "CPU one", "CUDA99999999999999999999999", "cuda²"]
        {
            let why = DeviceName::parse(text).expect_err("no device");
            assert!(why.contains(text) && why.contains("CUDA0, ..."), "{why}");
        }
        assert!(DeviceName::parse(" ").expect_err("no device").contains("no device is named"));
    }

    #[test]
    fn the_cpu_is_first_and_those_of_rules_are_last() {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for nothing in [&[][..], &["CPU"], &["none"], &["None"], &["cpu0"]] {
            assert_eq!(names(nothing, ""), Ok((list(&["CPU"]), 0)), "{nothing:?}");
        }
        assert_eq!(names(&["cuda1", "CPU", "CUDA0"], ""), Ok((list(&["CPU", "CUDA1", "CUDA0"]), 0)));
        assert_eq!(
            names(&["CPU1"], "a=CPU,b=cuda1,c=CPU1,d=CUDA01"),
            Ok((list(&["CPU", "CPU1", "CUDA1"]), 1))
        );
        for (named, words) in [
            (&["CUDA0", "cuda00"][..], "devices=CUDA0,cuda00: CUDA0 stands there twice"),
            (&["CPU", "CPU1", "cpu"], "CPU stands there twice"),
            (&["CUDA0", "none"], "there is no device none"),
            (&["CUDA0", ""], "no device is named"),
        ] {
            let error = names(named, "").expect_err("no devices");
            assert!(error.contains(words), "{error}");
        }
    }
}
