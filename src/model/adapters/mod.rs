//! Small trained parts beside a frozen model: LoRA adapters, the files that peft keeps of them, and soft prompts.

pub mod lora;
pub mod peft;
pub mod soft_prompt;
