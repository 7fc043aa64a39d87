//! Small trained additions to a frozen model: LoRA adapters, peft's files of them, adapters that are served on one
//! base, and soft prompts.

pub mod lora;
pub mod peft;
pub mod served;
pub mod soft_prompt;
