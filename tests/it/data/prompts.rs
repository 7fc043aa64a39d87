//! Instruction prompts.

use instructd::prompt::instruction;

#[test]
fn instructions_name_their_input_only_when_there_is_one() {
    assert!(instruction("Sum up.", Some("Long text")).ends_with("### Input:\nLong text\n\n### Response:\n"));
    assert!(!instruction("Say hi.", Some("  ")).contains("### Input"));
    assert_eq!(instruction("Say hi.", None), instruction("Say hi.", Some("")));
}
