//! Small trained parts beside a frozen model: LoRA adapters, the files that peft keeps of them, adapters that are served
//! beside one base, and soft prompts.

pub mod lora;
pub mod peft;
pub mod served;
pub mod soft_prompt;
