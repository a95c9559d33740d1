//! Commands packed by hand, many to one write. Does not know what they mean.

/// Commands in the order in which their replies will come.
#[derive(Debug, Default)]
pub struct Pack {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    args: usize,
}

impl Pack {
    /// Begins a command of `args` arguments, its name included.
    pub fn begin(&mut self, args: usize) {
        debug_assert_eq!(self.args, 0, "the command before lacks arguments");
        self.args = args;
        self.starts.push(self.bytes.len());
        self.head(b'*', args);
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: &[u8]) {
        debug_assert!(self.args > 0, "an argument too many");
        self.args = self.args.saturating_sub(1);
        self.head(b'$', arg.len());
        self.bytes.extend_from_slice(arg);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Adds an argument.
    pub fn text(&mut self, arg: &str) {
        self.arg(arg.as_bytes());
    }

    /// Adds an argument.
    pub fn number(&mut self, arg: u64) {
        self.text(itoa::Buffer::new().format(arg));
    }

    /// A whole command.
    pub fn command(&mut self, args: &[&str]) {
        self.begin(args.len());
        for arg in args {
            self.text(arg);
        }
    }

    /// What goes out.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many commands there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// True when there is no command.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Drops all commands and keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.args = 0;
    }

    /// The commands' arguments, for a client that must look at the keys.
    pub fn commands(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        let ends = self.starts.iter().skip(1).copied().chain([self.bytes.len()]);
        self.starts.iter().zip(ends).map(|(start, end)| split(&self.bytes[*start..end]))
    }

    fn head(&mut self, mark: u8, len: usize) {
        self.bytes.push(mark);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }
}

/// The arguments of one command that was packed here.
fn split(mut command: &[u8]) -> Vec<&[u8]> {
    let mut next_len = || {
        let end = command.iter().position(|byte| *byte == b'\r')?;
        let len: usize = std::str::from_utf8(command.get(1..end)?).ok()?.parse().ok()?;
        let rest = command.get(end + 2..)?;
        command = rest;
        Some(len)
    };
    let Some(count) = next_len() else { return Vec::new() };
    let mut args = Vec::with_capacity(count);
    for _ in 0..count {
        let end = command.iter().position(|byte| *byte == b'\r');
        let head = end.and_then(|end| Some((command.get(1..end)?, command.get(end + 2..)?)));
        let len = head.and_then(|(len, rest)| Some((std::str::from_utf8(len).ok()?.parse::<usize>().ok()?, rest)));
        let Some((len, rest)) = len else { break };
        let (Some(arg), Some(rest)) = (rest.get(..len), rest.get(len + 2..)) else { break };
        args.push(arg);
        command = rest;
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_can_be_told_apart_again() {
        let mut pack = Pack::default();
        pack.command(&["SET", "k", "a\r\nb"]);
        pack.begin(2);
        pack.text("");
        pack.number(7);
        assert_eq!(pack.bytes(), b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n*2\r\n$0\r\n\r\n$1\r\n7\r\n");
        let commands: Vec<_> = pack.commands().collect();
        assert_eq!(commands, [vec![&b"SET"[..], b"k", b"a\r\nb"], vec![&b""[..], b"7"]]);
    }
}
