//! What the console asks when a machine boots from a lent disk: a question, and what is typed. Pure.

use console::{Key, escape_unprintable};

/// Columns and rows of the text screen of a PC.
const WIDTH: usize = 79;
const ROWS: usize = 24;
/// The most characters that may be typed.
const LONGEST: usize = 200;

const BACKSPACE: [u8; 2] = [8, 127];
const CONTROL_U: u8 = 21;

/// How a question is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By the number of a row.
    Choice,
    /// By digits.
    Code,
    /// By any text.
    Text,
    /// By y, also as a German keyboard sends it, and by nothing else.
    Consent,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The row with this index.
    Row(usize),
    Text(String),
    /// The question is answered by yes.
    Yes,
    /// An address is to be typed.
    Address,
    /// Back to the first question.
    Back,
    PowerOff,
    Restart,
}

/// A question on the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dialogue {
    kind: Kind,
    question: String,
    rows: Vec<String>,
    /// Whether Enter alone takes the only row.
    has_default: bool,
    /// What is shown in the place of rows, if there are none.
    empty: String,
    /// Why the last attempt failed.
    message: String,
    /// About this machine: its network, its drivers.
    pub(super) notes: Vec<String>,
    typed: String,
}

impl Dialogue {
    pub(super) fn new(kind: Kind, question: &str) -> Self {
        Self {
            kind,
            question: question.to_owned(),
            rows: Vec::new(),
            has_default: true,
            empty: String::new(),
            message: String::new(),
            notes: Vec::new(),
            typed: String::new(),
        }
    }

    /// Sets what is shown while there are no rows.
    pub(super) fn or_else(self, empty: &str) -> Self {
        Self { empty: empty.to_owned(), ..self }
    }

    pub(super) fn with(self, rows: Vec<String>) -> Self {
        Self { rows, ..self }
    }

    pub(super) fn after(self, message: &str) -> Self {
        Self { message: message.to_owned(), ..self }
    }

    /// Replaces the rows, unless a number is being typed: it means a row that was shown. Where `has_default`, Enter alone
    /// takes the only row.
    pub(super) fn update(&mut self, rows: Vec<String>, has_default: bool) -> bool {
        let takes = self.typed.is_empty();
        if takes {
            (self.rows, self.has_default) = (rows, has_default);
        }
        takes
    }

    /// Handles a key.
    pub(super) fn key(&mut self, key: Key) -> Option<Answer> {
        let Key::Byte(byte) = key else { return None };
        match (self.kind, byte) {
            (_, b'\r' | b'\n') => self.enter(),
            (_, byte) if BACKSPACE.contains(&byte) => {
                self.typed.pop();
                None
            }
            (_, CONTROL_U) => {
                self.typed.clear();
                None
            }
            (Kind::Text, byte) => self.put(byte, |byte| byte.is_ascii_graphic()),
            (_, b'p' | b'P') => Some(Answer::PowerOff),
            (_, b'r' | b'R') => Some(Answer::Restart),
            (_, b'b' | b'B') => Some(Answer::Back),
            // The kernel takes every keyboard for an English one: on a German one, y sends z.
            (Kind::Consent, byte) => (byte == b'y' || byte == b'z').then_some(Answer::Yes),
            (Kind::Choice, b'a' | b'A') => Some(Answer::Address),
            (Kind::Choice, byte) => self.put(byte, |byte| byte.is_ascii_digit()),
            (Kind::Code, byte) => {
                self.put(byte, |byte| byte.is_ascii_digit() || b" -".contains(byte))
            }
        }
    }

    fn put(&mut self, byte: u8, may: impl Fn(&u8) -> bool) -> Option<Answer> {
        if may(&byte) && self.typed.len() < LONGEST {
            self.typed.push(char::from(byte));
        }
        None
    }

    fn enter(&mut self) -> Option<Answer> {
        let typed = std::mem::take(&mut self.typed);
        match self.kind {
            Kind::Consent => None,
            Kind::Choice if typed.is_empty() && self.rows.len() == 1 && self.has_default => {
                Some(Answer::Row(0))
            }
            Kind::Choice if typed.is_empty() => None,
            Kind::Choice => {
                let row = typed.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                let row = row.filter(|row| *row < self.rows.len());
                if row.is_none() {
                    self.message = format!("There is no number {typed}.");
                }
                row.map(Answer::Row)
            }
            Kind::Text if typed.is_empty() => Some(Answer::Back),
            Kind::Code if typed.is_empty() => None,
            Kind::Code | Kind::Text => Some(Answer::Text(typed)),
        }
    }

    /// Returns the lines of the screen, in ASCII: at most 24 of 79 characters.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines =
            vec!["storagetm: start a system from a lent disk".to_owned(), String::new()];
        if !self.message.is_empty() {
            lines.extend(folded(&self.message, 4));
            lines.push(String::new());
        }
        lines.extend(folded(&self.question, 3));
        lines.push(String::new());
        // A line says how many more there are, and three are below.
        let most = ROWS.saturating_sub(lines.len()).saturating_sub(4);
        let rows = self.rows.iter().zip(1..).take(most);
        lines.extend(rows.map(|(row, number)| cut(&format!("{number:>4}  {row}"))));
        if self.rows.len() > most {
            lines.push(format!("      ... and {} more", self.rows.len().saturating_sub(most)));
        }
        if self.rows.is_empty() && !self.empty.is_empty() {
            lines.extend(folded(&self.empty, 3));
        }
        let prompt = [String::new(), cut(&format!("> {}", self.typed)), self.help().to_owned()];
        let room = ROWS.saturating_sub(lines.len()).saturating_sub(prompt.len());
        let notes: Vec<String> = self.notes.iter().flat_map(|note| folded(note, 2)).collect();
        if !notes.is_empty() && room > 1 {
            lines.push(String::new());
            lines.extend(notes.into_iter().take(room.saturating_sub(1)));
        }
        lines.extend(prompt);
        lines.truncate(ROWS);
        lines
    }

    fn help(&self) -> &'static str {
        match self.kind {
            Kind::Choice => {
                "Number and Enter   a type an address   b back   r restart   p power off"
            }
            Kind::Code => "The code and Enter   b back   r restart   p power off",
            Kind::Text => "Enter; an empty line goes back",
            Kind::Consent => "y go on without encryption   b back   r restart   p power off",
        }
    }
}

/// Cuts a line at the width of the screen.
fn cut(text: &str) -> String {
    escape_unprintable(text, false).chars().take(WIDTH).collect()
}

/// Breaks a text into lines at blanks; at most this many.
fn folded(text: &str, most: usize) -> Vec<String> {
    let text = escape_unprintable(text, false);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(last) = lines.last_mut() else { break };
        if !last.is_empty() && last.len().saturating_add(word.len()) >= WIDTH {
            lines.push(word.to_owned());
        } else {
            let blank = if last.is_empty() { "" } else { " " };
            last.push_str(&format!("{blank}{word}"));
        }
    }
    lines.iter().take(most).map(|line| line.chars().take(WIDTH).collect()).collect()
}

/// Returns the screen while something is done.
pub(super) fn busy(what: &str) -> Vec<String> {
    let mut lines = vec!["storagetm: start a system from a lent disk".to_owned(), String::new()];
    lines.extend(folded(what, 10));
    lines
}

#[cfg(test)]
mod test {
    use super::*;

    fn typed(dialogue: &mut Dialogue, text: &str) -> Option<Answer> {
        let mut answers: Vec<Answer> =
            text.bytes().filter_map(|byte| dialogue.key(Key::Byte(byte))).collect();
        assert!(answers.len() <= 1, "{answers:?}");
        answers.pop()
    }

    fn machines(names: &[&str]) -> Dialogue {
        let rows = names.iter().map(|name| (*name).to_owned()).collect();
        Dialogue::new(Kind::Choice, "Which machine?").with(rows).or_else("None yet.")
    }

    #[test]
    fn row_is_chosen_by_its_number() {
        let mut list = machines(&["desk", "laptop"]);
        assert_eq!(typed(&mut list, "2\r"), Some(Answer::Row(1)));
        assert_eq!(typed(&mut list, "9\x7f1\n"), Some(Answer::Row(0)));
        for wrong in ["\r", "3\r", "0\r", "99999999999999999999999\r", "x\r"] {
            assert_eq!(typed(&mut list, wrong), None, "{wrong:?}");
        }
        assert_eq!(typed(&mut machines(&["desk"]), "\r"), Some(Answer::Row(0)), "the only one");
        assert_eq!(typed(&mut machines(&[]), "1\r"), None);
    }

    #[test]
    fn list_does_not_change_under_a_number() {
        let mut list = machines(&["desk", "laptop"]);
        assert_eq!(typed(&mut list, "2"), None);
        assert!(!list.update(vec!["another".to_owned(), "desk".to_owned()], true));
        assert_eq!(typed(&mut list, "\r"), Some(Answer::Row(1)));
        assert!(list.lines().iter().any(|line| line == "   2  laptop"));
        assert!(list.update(vec!["another".to_owned()], false));
        assert!(list.lines().iter().any(|line| line == "   1  another"));
        assert_eq!(typed(&mut list, "\r"), None, "not without its number");
        assert_eq!(typed(&mut list, "1\r"), Some(Answer::Row(0)));
    }

    #[test]
    fn letters_leave_a_list_and_are_part_of_a_text() {
        for (key, answer) in [
            ("a", Answer::Address),
            ("b", Answer::Back),
            ("p", Answer::PowerOff),
            ("R", Answer::Restart),
        ] {
            assert_eq!(typed(&mut machines(&["desk"]), key), Some(answer), "{key}");
        }
        let mut text = Dialogue::new(Kind::Text, "Which address?");
        assert_eq!(typed(&mut text, "par b\r"), Some(Answer::Text("parb".to_owned())));
        assert_eq!(typed(&mut text, "\r"), Some(Answer::Back));
    }

    #[test]
    fn code_is_made_of_digits() {
        let mut code = Dialogue::new(Kind::Code, "Which code?");
        assert_eq!(typed(&mut code, "\r"), None);
        assert_eq!(typed(&mut code, "12x34 5678\r"), Some(Answer::Text("1234 5678".to_owned())));
        assert_eq!(typed(&mut code, "12\x15\r"), None);
        assert_eq!(typed(&mut code, "1b"), Some(Answer::Back));
    }

    #[test]
    fn only_y_agrees_to_no_encryption() {
        let mut consent = Dialogue::new(Kind::Consent, "NOT ENCRYPTED");
        for other in ["\r", "\n", "1\r", "a", "Y", "Z", "x", " "] {
            assert_eq!(typed(&mut consent, other), None, "{other:?}");
        }
        assert_eq!(typed(&mut consent, "b"), Some(Answer::Back));
        for yes in ["y", "z"] {
            assert_eq!(typed(&mut consent, yes), Some(Answer::Yes));
        }
    }

    #[test]
    fn screen_has_24_lines_of_79_characters() {
        let names: Vec<String> =
            (0..40).map(|n| format!("machine {n} {}", "x".repeat(90))).collect();
        let mut list = Dialogue::new(Kind::Choice, &"why ".repeat(200)).with(names);
        list = list.after(&"because ".repeat(100));
        list.notes = vec!["eth0: no carrier. ".repeat(40); 9];
        let _ = typed(&mut list, &"1".repeat(500));
        let lines = list.lines();
        assert_eq!(lines.len(), ROWS);
        assert!(lines.iter().all(|line| line.len() <= WIDTH), "{lines:#?}");
        assert!(lines.last().unwrap().starts_with("Number and Enter"), "{lines:#?}");
    }

    #[test]
    fn names_from_the_network_cannot_control_the_terminal() {
        let list = machines(&["a\x1b[2Jb\u{202e}"]).after("\x07 no\r\nline");
        let text = list.lines().join("\n");
        assert!(text.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{text:?}");
        assert!(!list.lines().iter().any(|line| line == "line"));
    }
}
