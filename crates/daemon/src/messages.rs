//! Messages on the screen.

use std::collections::{BTreeMap, VecDeque};

/// Most messages since start-up that are kept.
const MAX_MESSAGES: usize = 100;

/// Messages for the user, one sentence each.
#[derive(Debug, Default)]
pub struct Messages {
    /// Messages of start-up. All are kept, since their number is bounded.
    startup: Vec<String>,
    is_started: bool,
    /// Messages since then.
    notes: VecDeque<String>,
    /// Number of messages that were dropped.
    forgotten: usize,
    /// Messages by subject.
    subjects: BTreeMap<String, String>,
}

impl Messages {
    /// Adds a message; one that is already present moves to the end.
    pub fn add(&mut self, sentence: String) {
        self.notes.retain(|known| *known != sentence);
        self.notes.push_back(sentence);
        while self.is_started && self.notes.len() > MAX_MESSAGES {
            self.notes.pop_front();
            self.forgotten += 1;
        }
    }

    /// Removes a message that no longer applies.
    pub fn remove(&mut self, sentence: &str) {
        self.notes.retain(|known| known != sentence);
        self.startup.retain(|known| known != sentence);
    }

    /// Ends start-up: the messages so far are kept beside later ones.
    pub fn end_startup(&mut self) {
        self.startup.extend(self.notes.drain(..));
        self.is_started = true;
    }

    /// Replaces or removes the message of a subject.
    pub fn set_subject(&mut self, subject: String, sentence: Option<String>) {
        match sentence {
            Some(sentence) => drop(self.subjects.insert(subject, sentence)),
            None => drop(self.subjects.remove(&subject)),
        }
    }

    /// All messages: those of subjects, then the others, the newest last.
    pub fn list(&self) -> Vec<String> {
        let forgotten = (self.forgotten > 0)
            .then(|| format!("{} older messages are not kept any more.", self.forgotten));
        let startup = self.startup.iter().filter(|note| !self.notes.contains(note)).cloned();
        let notes = self.subjects.values().cloned().chain(startup).chain(forgotten);
        notes.chain(self.notes.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn messages_are_unique_and_dropped_ones_counted() {
        let mut messages = Messages::default();
        messages.end_startup();
        (0..20).for_each(|n| messages.add(format!("note {}", n % 9)));
        assert_eq!(messages.list().len(), 9);
        assert_eq!(messages.list().last().unwrap(), "note 1");
        (0..MAX_MESSAGES).for_each(|n| messages.add(format!("new {n}")));
        assert_eq!(messages.list().len(), MAX_MESSAGES + 1);
        assert_eq!(messages.list()[0], "9 older messages are not kept any more.");
    }

    #[test]
    fn message_that_is_over_is_removed() {
        let mut messages = Messages::default();
        messages.add("first".to_owned());
        messages.end_startup();
        messages.add("second".to_owned());
        messages.remove("first");
        assert_eq!(messages.list(), ["second"]);
        messages.remove("second");
        assert!(messages.list().is_empty());
    }

    #[test]
    fn startup_messages_are_kept_beside_later_ones() {
        let mut messages = Messages::default();
        let first = MAX_MESSAGES + 20;
        (0..first).for_each(|n| messages.add(format!("first {n}")));
        messages.end_startup();
        (0..MAX_MESSAGES).for_each(|n| messages.add(format!("later {n}")));
        assert_eq!(messages.list().len(), first + MAX_MESSAGES);
        messages.add("first 7".to_owned());
        let shown = messages.list();
        assert_eq!(shown.len(), first + MAX_MESSAGES, "one goes, its count comes");
        assert!(shown[0] == "first 0" && shown[first - 1].starts_with("1 older"), "{shown:?}");
        assert_eq!(shown.last().unwrap(), "first 7");
    }
}
