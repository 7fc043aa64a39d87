//! One line of text for an error and its causes.

/// An error with its causes, separated by colons. A cause whose text is already part of the message before it is left
/// out.
pub fn error_chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_written_once() {
        let cause = std::io::Error::other("no such file");
        let error = anyhow::Error::new(cause).context("cannot read x: no such file").context("model");
        assert_eq!(error_chain(&error), "model: cannot read x: no such file");
        assert_eq!(error_chain(&anyhow::anyhow!("one")), "one");
    }
}
