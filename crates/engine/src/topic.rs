//! Which sessions a change of shared state concerns.

use export::{Export, ExportId};

/// What a change of shared state is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Topic {
    /// It concerns all sessions.
    All,
    /// It concerns the sessions that use this export, and those that use none yet.
    Export(ExportId),
}

impl Topic {
    /// Returns the topic of changes of an export.
    pub(crate) fn of(export: &Export) -> Self {
        Self::Export(export.id.clone())
    }

    /// Returns the topic of the changes that a session makes which uses `export`.
    pub(crate) fn from_session(export: Option<&ExportId>) -> Self {
        export.map_or(Self::All, |id| Self::Export(id.clone()))
    }

    /// Returns whether the change concerns a session that uses `export`.
    pub(crate) fn concerns(&self, export: Option<&ExportId>) -> bool {
        match (self, export) {
            (Self::Export(changed), Some(used)) => changed == used,
            _ => true,
        }
    }
}

/// Changes that sessions were not yet notified of.
#[derive(Debug, Default)]
pub(crate) struct Changes(Vec<Topic>);

impl Changes {
    /// Adds a change.
    pub(crate) fn add(&mut self, topic: Topic) {
        if topic == Topic::All {
            self.0.clear();
        }
        if !self.0.contains(&Topic::All) && !self.0.contains(&topic) {
            self.0.push(topic);
        }
    }

    /// Returns whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether one of them concerns a session that uses `export`.
    pub(crate) fn concern(&self, export: Option<&ExportId>) -> bool {
        self.0.iter().any(|topic| topic.concerns(export))
    }
}

impl IntoIterator for Changes {
    type Item = Topic;
    type IntoIter = std::vec::IntoIter<Topic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn change_of_an_export_concerns_no_session_of_another() {
        let (one, other) = (ExportId::from("one"), ExportId::from("other"));
        let mut changes = Changes::default();
        assert!(!changes.concern(None) && !changes.concern(Some(&one)));
        changes.add(Topic::Export(one.clone()));
        changes.add(Topic::Export(one.clone()));
        assert!(changes.concern(None) && changes.concern(Some(&one)));
        assert!(!changes.concern(Some(&other)));
        changes.add(Topic::All);
        changes.add(Topic::Export(one));
        assert!(changes.concern(Some(&other)));
        assert_eq!(changes.into_iter().collect::<Vec<_>>(), [Topic::All]);
    }
}
