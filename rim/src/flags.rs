//! The command line and its environment: every flag is also read from a variable named after it, and its help shows its
//! default, which the configuration alone knows.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, FromArgMatches};

/// One program's flags.
#[derive(Debug)]
pub struct Flags {
    command: Command,
    env_prefix: &'static str,
}

impl Flags {
    /// Gives every flag of `command`, but for those that only show something, a variable `<env_prefix><NAME>` and, where
    /// `defaults` has one by its name, a default in its help.
    pub fn new(command: Command, env_prefix: &'static str, defaults: &[(String, String)]) -> Self {
        let command = command.mut_args(|arg| {
            let name = arg.get_id().as_str().to_owned();
            if matches!(&*name, "print_config" | "help" | "version") {
                return arg;
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let help = match defaults.iter().find(|(key, _)| *key == name) {
                Some((_, default)) => format!("{help} [default: {default}]"),
                None => help,
            };
            // The command is made once or twice in the life of a process, and clap wants names that outlive it.
            let variable: &'static str = format!("{env_prefix}{}", name.to_uppercase()).leak();
            arg.help(help).env(variable).hide_env(true)
        });
        Self { command, env_prefix }
    }

    /// Reads the command line and the environment.
    ///
    /// # Errors
    /// Also for `--help` and `--version`, which are not failures: ask [`clap::Error::exit_code`].
    pub fn parse<A: FromArgMatches>(self) -> Result<A, clap::Error> {
        A::from_arg_matches(&self.command.try_get_matches()?)
    }

    /// Environment variables that look like flags and are none: misspelt, most likely.
    pub fn unknown_variables(&self) -> Vec<String> {
        self.unknown_among(std::env::vars_os().map(|(name, _)| name))
    }

    fn unknown_among(&self, names: impl Iterator<Item = OsString>) -> Vec<String> {
        let known: Vec<_> = self.command.get_arguments().filter_map(Arg::get_env).collect();
        let of_service = format!("{}PORT", self.env_prefix);
        names
            .filter(|name| !known.contains(&name.as_os_str()))
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(self.env_prefix))
            // Kubernetes sets these in every container beside a service of the program's name.
            .filter(|name| !name.contains("_SERVICE_") && !name.starts_with(&of_service))
            .collect()
    }

    /// The command, for a test of its consistency.
    pub fn command(&self) -> &Command {
        &self.command
    }
}

/// Explains in one line why a command line cannot be read.
pub fn explain(error: &clap::Error, env_prefix: &str) -> String {
    let text = error.render().to_string();
    // The first line says it, a tip may follow; the usage is for `--help`.
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Usage:"));
    let line = lines.collect::<Vec<_>>().join("; ").replace("For more information, try", "see");
    let line = line.strip_prefix("error: ").unwrap_or(&line).trim_end_matches('.');
    match variable_behind(error, env_prefix) {
        Some(variable) => format!("{line} (it came from {variable})"),
        None => line.to_owned(),
    }
}

/// The environment variable that a refused value came from, if it was not on the command line.
fn variable_behind(error: &clap::Error, env_prefix: &str) -> Option<String> {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else { return None };
    let flag = shown.split([' ', '[', '=']).next()?;
    let variable = format!("{env_prefix}{}", flag.strip_prefix("--")?.replace('-', "_").to_uppercase());
    let is_on_command_line = std::env::args().any(|arg| arg.split('=').next() == Some(flag));
    (!is_on_command_line && std::env::var_os(&variable).is_some()).then_some(variable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        let command = Command::new("toy").arg(Arg::new("poll").long("poll").help("Between two looks"));
        Flags::new(command, "RTC_TOY_", &[("poll".to_owned(), "5s".to_owned())])
    }

    #[test]
    fn a_flag_has_its_default_in_its_help_and_a_variable() {
        let flags = flags();
        let arg = flags.command().get_arguments().next().unwrap().clone();
        assert_eq!(arg.get_help().unwrap().to_string(), "Between two looks [default: 5s]");
        assert_eq!(arg.get_env().unwrap(), "RTC_TOY_POLL");
    }

    #[test]
    fn a_misspelt_variable_is_found_and_a_foreign_one_is_not() {
        let names = ["RTC_TOY_POLL", "RTC_TOY_POL", "RTC_TOY_PORT_80_TCP", "RTC_TOY_SERVICE_HOST", "PATH"];
        assert_eq!(flags().unknown_among(names.into_iter().map(OsString::from)), ["RTC_TOY_POL"]);
    }

    #[test]
    fn a_wrong_flag_is_explained_in_one_line() {
        let error = flags().command().clone().try_get_matches_from(["toy", "--pol", "1"]).unwrap_err();
        let line = explain(&error, "RTC_TOY_");
        assert!(line.contains("--pol") && line.contains("--poll") && !line.contains('\n'), "{line}");
    }
}
