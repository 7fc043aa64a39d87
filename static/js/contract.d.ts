// Types of the server's API. Made by scripts/api_types.mjs from /openapi.json: do not edit.

/** Share of held-out pairs that a reward model orders as people did. */
export type Accuracy = {
  value: number;
  low: number | null;
  high: number | null;
  n: number;
  chance: number;
};

/** Data behind the active versions. */
export type ActiveEvidence = {
  /** Of the active reward model, on held-out pairs. */
  accuracy: Accuracy | null;
  /** Rankings since the active reward model was made. */
  new_rankings: number | null;
  /** Sets with completions of the active policy, and rankings of them. */
  policy_sets: number;
  policy_rankings: number;
  /** Reward and KL of the active policy, at the end of its training. */
  policy: EvidenceSummary | null;
};

/** The rubric by which labelers rate completions now. */
export type ActiveRubric = {
  /** Null when completions are only ranked. */
  rubric: Rubric | null;
};

/** Figures of agreement; `null` if the data does not allow one. */
export type Agreement = {
  /** Units with two ratings or more. Units of one set are not independent: each figure's `n` counts sets. */
  units: number;
  sets: number;
  labelers: number;
  /** Share of pairs of labelers with equal ratings, ties included. */
  pairwise: Figure | null;
  /** Share of pairs of labelers with equal ratings, of those where both have a preference: the figure that papers
   * report (72–77 %). */
  pairwise_without_ties: Figure | null;
  alpha_ordinal: Figure | null;
  alpha_nominal: Figure | null;
  /** Over the units with exactly `fleiss_raters` ratings, the most common number. */
  fleiss_kappa: Figure | null;
  fleiss_raters: number | null;
  cohen: CohenKappa[];
};

/** The current guidelines of every language, and all stored versions. */
export type AllGuidelines = {
  current: EditableGuidelines[];
  versions: FormerGuidelines[];
};

/** What an administrator chooses from. */
export type AllRubrics = {
  /** Version of the active rubric; null for none. */
  active: string | null;
  /** Newest first. */
  versions: StoredRubric[];
  presets: Preset[];
};

/** Records and their size. */
export type Amount = {
  records: number;
  bytes: number;
};

/** Amounts by kind of record; `job_files` counts jobs. */
export type Amounts = {
  completions: Amount;
  /** Completions of requests. */
  prompts: Amount;
  feedback_events: Amount;
  /** Files of ended jobs on this machine. */
  job_files: Amount;
};

export type AnthropicBlock = {
  type: 'thinking';
  thinking: string;
  /** Always empty. */
  signature: string;
} | {
  type: 'text';
  text: string;
} | {
  type: 'tool_use';
  id: string;
  name: string;
  /** An object; `{"unfinished": text}` when the answer was cut off in it. */
  input: any;
};

export type AnthropicDelta = {
  type: 'thinking_delta';
  thinking: string;
} | {
  type: 'text_delta';
  text: string;
} | {
  type: 'input_json_delta';
  partial_json: string;
};

/** One event of a streamed message. */
export type AnthropicEvent = {
  /** The type of the data; `error` when the key or session of the stream has ended. */
  event: string;
  data: AnthropicEventData;
};

export type AnthropicEventBody = {
  type: 'message_start';
  message: AnthropicMessage;
} | {
  type: 'content_block_start';
  index: number;
  content_block: AnthropicBlock;
} | {
  type: 'content_block_delta';
  index: number;
  delta: AnthropicDelta;
} | {
  type: 'content_block_stop';
  index: number;
} | {
  type: 'message_delta';
  delta: MessageEnd;
  usage: AnthropicUsage;
} | {
  type: 'message_stop';
} | {
  type: 'error';
  error: ErrorDetail;
};

export type AnthropicEventData = AnthropicEventBody | Error;

/** A message of the assistant. */
export type AnthropicMessage = {
  id: string;
  type: 'message';
  role: 'assistant';
  model: string;
  content: AnthropicBlock[];
  /** Null while the message is incomplete. */
  stop_reason: StopReason | null;
  /** The stop sequence that ended the text. */
  stop_sequence: string | null;
  usage: AnthropicUsage;
};

export type AnthropicUsage = {
  input_tokens: number;
  output_tokens: number;
};

/** An answer has ended. */
export type AskDone = {
  place: number;
  /** `stop` or `length`. */
  reason: string;
};

/** One event of the stream. */
export type AskEvent = {
  event: 'start';
  data: AskStart;
} | {
  event: 'text';
  data: AskText;
} | {
  event: 'done';
  data: AskDone;
} | {
  event: 'set';
  data: LeasedSet;
} | {
  event: 'error';
  data: Error;
};

export type AskStart = {
  /** Number of answers. */
  answers: number;
};

/** More text of an answer. */
export type AskText = {
  /** Which answer, in shown order from 0. */
  place: number;
  text: string;
};

export type AssignmentState = 'leased' | 'submitted' | 'expired' | 'released';

export type AssistantMessage = {
  role: 'assistant';
  /** Null when there are only calls of tools. */
  content: string | null;
  /** Always null. */
  refusal: string | null;
  /** The model's thoughts before its answer. */
  reasoning_content?: string | null;
  tool_calls?: CalledTool[];
};

/** One assumption of an estimate. Its `Display` is English; pages have words of their own for each `code`. */
export type Assumption = {
  code: 'lora';
  rank: number;
  trained: number;
  parameters: number;
} | {
  code: 'all_parameters';
  parameters: number;
} | {
  code: 'max_length';
  tokens: number;
} | {
  code: 'max_length_of_data';
  tokens: number;
} | {
  code: 'micro_batches';
  tokens: number;
} | {
  code: 'reward_model';
  parameters: number;
} | {
  code: 'judge_model';
  parameters: number;
} | {
  code: 'rows';
  rows: number;
  tokens: number;
} | {
  code: 'longest_sequences';
} | {
  code: 'runs';
  runs: number;
} | {
  code: 'earlier_runs';
  runs: number;
} | {
  code: 'measured_product';
  gflops: number;
} | {
  code: 'judge_answers';
} | {
  code: 'other_program';
} | {
  code: 'unknown_model';
};

/** Attention probabilities between tokens. */
export type AttentionMaps = {
  maps: LayerMaps[];
  object: 'attention';
  model: string;
  kind: ModelKind;
  /** Whether a token attends only to itself and to preceding ones. */
  causal: boolean;
  tokens: string[];
  /** Bytes of each token, which may be partial characters. */
  bytes: number[][];
  ids: number[];
  n_layers: number;
  n_heads: number;
  instructd: Origin;
};

/** One entry of the audit trail. */
export type AuditEntry = {
  id: number;
  /** The labeler's id. */
  actor: string;
  /** The actor's credential: the id of a key, `configured` for the configured admin key, `link:` and the id
   * of a sign-in link, `invite`; absent in entries from before this was stored, and for actions of the server. */
  credential?: string | null;
  /** `invite`, `create_key`, `import`, `promote`, `erase`, … */
  action: string;
  /** Id (or name) of the changed object. */
  target: string;
  detail: any;
  created: number;
};

/** A page of the audit trail, newest first. */
export type AuditPage = {
  data: AuditEntry[];
  /** Names of the ids of actors and targets, as far as they are known. */
  names: Record<string, NameOf>;
  /** Id of the last entry, for `?before=` of the next page. Null when the page is empty. */
  before: number | null;
};

/** The author of a completion. */
export type Author = {
  completion_id: string;
  /** Name of the model version; `human`, `edit` or `import` for texts that no model wrote. */
  model: string;
};

/** A completion with its author. */
export type AuthoredCompletion = {
  id: string;
  /** `stop`, `length` or `abort`; null for texts that no model wrote. */
  finish_reason: string | null;
  text: string;
  html: string;
  /** Name of the model version; `human`, `edit` or `import` for texts that no model wrote. */
  author: string;
};

/** What a reward model is compared with on its held-out pairs. */
export type Baseline = {
  /** `longer` or `shorter`: a preference for the longer or shorter answer; `words`: a bag of words. */
  name: string;
  /** Share of pairs that it orders as people did; no order counts half. */
  accuracy: number;
  /** The model's accuracy minus the baseline's, with its 95 % interval; the pairs of a set are not independent. */
  gain: number;
  low: number;
  high: number;
};

/** A batch and its progress. */
export type Batch = {
  id: string;
  object: 'batch';
  endpoint: string;
  errors: BatchErrors | null;
  input_file_id: string;
  completion_window: '24h';
  /** State; `validating` until a server begins with it. */
  status: BatchState;
  /** File of the results, one on a line. Created when the batch ends. */
  output_file_id: string | null;
  /** File of the requests that were refused or not answered in time, one on a line. */
  error_file_id: string | null;
  /** Times in seconds since 1970. */
  created_at: number;
  in_progress_at: number | null;
  expires_at: number;
  finalizing_at: number | null;
  completed_at: number | null;
  failed_at: number | null;
  expired_at: number | null;
  cancelling_at: number | null;
  cancelled_at: number | null;
  request_counts: RequestTally;
  /** As in the request. */
  metadata: any;
};

/** Why a batch failed. */
export type BatchErrors = {
  object: 'list';
  data: BatchFault[];
};

/** Why a batch could not start or could not be completed. */
export type BatchFault = {
  code: string;
  message: string;
  /** The field of the line. */
  param: string | null;
  /** The line of the input file, from 1. */
  line: number | null;
};

/** One page of a list, newest first, OpenAI's form. */
export type BatchListing = {
  object: 'list';
  data: Batch[];
  first_id: string | null;
  /** Id of the last row, for `?after=` of the next page. */
  last_id: string | null;
  has_more: boolean;
};

/** The state of a batch. */
export type BatchState = 'in_progress' | 'cancelling' | 'cancelled' | 'completed' | 'validating' | 'failed' | 'expired';

/** A mean before and after training, measured in the same run by the same model. */
export type BeforeAfter = {
  before: Figure | null;
  after: Figure;
};

/** A completion without its author. */
export type BlindCompletion = {
  id: string;
  text: string;
  /** Position in the stored text at which `text` begins, in Unicode scalar values: the length of hidden reasoning. The
   * positions of a judgment's spans are in the stored text. */
  text_start: number;
  html: string;
  /** The parts of a completion that is more than text, in order. */
  parts?: ShownPart[];
  /** Ended by the length limit. */
  cut_off: boolean;
  /** Number of tokens at which the length limit ended it; null if it did not, or if the number is not known. */
  cut_off_at: number | null;
};

/** Rank completions by their ratings on one dimension of a rubric, instead of by the labeler's ranking. */
export type ByRating = {
  /** Version of the rubric; what was rated by others is left out. */
  rubric: string;
  /** Key of a `likert` or `flag` dimension. */
  dimension: string;
  /** The lowest number, or no, is best. Default: the highest number, or yes. */
  lower_is_better?: boolean;
};

/** A call that begins, with its id and name, or more of its arguments. */
export type CallDelta = {
  index: number;
  id?: string | null;
  type?: string | null;
  function: FunctionDelta;
};

export type CalledFunction = {
  name: string;
  /** The text of a JSON object; incomplete when the answer was cut off. */
  arguments: string;
};

/** One call of a tool. */
export type CalledTool = {
  id: string;
  type: 'function';
  function: CalledFunction;
};

/** A candidate that answers a share of the requests. */
export type Canary = {
  model_version_id: string;
  /** Share of the requests that name no model, above 0 and at most 1. */
  share: number;
  since: number;
};

/** Every model that can be pulled by name, and the memory of this machine. */
export type Catalogue = {
  /** By size. */
  data: CatalogueEntry[];
  /** Memory that is available to a new process, bytes; null when it is not known. */
  available_memory_bytes: number | null;
};

/** A model of the catalogue with its memory needs, and whether it is installed. */
export type CatalogueEntry = {
  name: string;
  /** Repository on the Hugging Face hub. */
  repo: string;
  /** Parameters in millions, as the publisher states them. */
  millions: number;
  /** The licence's name on the hub. */
  license: string;
  /** Whether the hub requires consent and a token for the files. */
  gated: boolean;
  /** Languages by their codes, as the publisher states them; `multilingual` for more than a few dozen. */
  languages: string[];
  /** Bytes by the number of parameters, without caches and activations. */
  needs: MemoryNeeds;
  pulled: boolean;
};

/** The keys that the caller has changed. */
export type ChangedKeys = {
  /** Keys by action; null when they were never stored. */
  keys: Record<string, string> | null;
};

export type ChatChoice = {
  index: number;
  message: AssistantMessage;
  finish_reason: ChatFinish | null;
  /** Only with `logprobs`. */
  logprobs: ChatLogprobs | null;
};

/** A piece of a streamed chat completion. */
export type ChatChunk = {
  id: string;
  object: 'chat.completion.chunk';
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: ChatChunkChoice[];
  instructd: Generated;
  /** In the last chunk, with `stream_options.include_usage`. */
  usage?: TokenUsage | null;
};

export type ChatChunkChoice = {
  index: number;
  delta: ChatDelta;
  /** Only with `logprobs`. */
  logprobs: ChatLogprobs | null;
  finish_reason: ChatFinish | null;
};

/** One event of a streamed generation. */
export type ChatChunkEvent = {
  /** `error` when the key or session of the stream has ended; else absent. */
  event?: string | null;
  data: ChatChunkEventData;
};

export type ChatChunkEventData = ChatChunk | Error | EndOfStream;

/** The assistant's next message, once for each sample. */
export type ChatCompletion = {
  id: string;
  object: 'chat.completion';
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: ChatChoice[];
  instructd: Generated;
  usage: TokenUsage;
};

/** The addition to the message. */
export type ChatDelta = {
  /** In the first chunk of a choice. */
  role?: string | null;
  content?: string | null;
  /** More of the model's thoughts. */
  reasoning_content?: string | null;
  tool_calls?: CallDelta[];
};

/** Why an answer ended. */
export type ChatFinish = 'stop' | 'length' | 'abort' | 'tool_calls';

/** The tokens of a chat message. */
export type ChatLogprobs = {
  content: ChatToken[];
  /** Always null. */
  refusal: string | null;
};

/** A message: role and content, and the fields that servers and libraries add. Fields for features that this server
 * lacks are refused by name unless they are empty. */
export type ChatMessage = {
  /** `system`, `user`, `assistant` or `tool`; `developer` counts as `system`. */
  role: string;
  /** A text, or a list of parts of type text. The assistant's may be missing. */
  content?: any;
  /** Name of the participant. Accepted, without effect. */
  name?: string | null;
  /** The assistant's refusal; used as its content. */
  refusal?: string | null;
  /** The message as HTML, as this server shows it to people. Accepted, without effect. */
  html?: string | null;
  /** The parts of the message, as this server shows them to people. Accepted, without effect. */
  parts?: any;
  /** The assistant's calls of tools. Not supported for choices, except empty. */
  tool_calls?: any;
  /** The call that a message of the role `tool` answers. Not supported for choices. */
  tool_call_id?: any;
  /** Not supported. */
  function_call?: any;
  /** Not supported. */
  audio?: any;
  /** Not supported, except empty. */
  annotations?: any;
  /** The assistant's thoughts, for templates that use them. Elsewhere than in chat without effect; not supported for
   * choices, except empty. */
  reasoning_content?: any;
  /** Another name of `reasoning_content`. */
  reasoning?: any;
};

/** A token and its alternatives. */
export type ChatToken = {
  token: string;
  logprob: number | null;
  /** Bytes of the token, which may be partial characters. */
  bytes: number[];
  token_id: number;
  top_logprobs: TokenEntry[];
};

/** A few-shot example. */
export type ChoiceExample = {
  input: string;
  /** One of the labels; the first of its words is inserted. */
  label: string;
};

export type ChoicesOrigin = {
  model_version: string;
  /** Id of the soft prompt. */
  prompt_adapter: string | null;
};

/** Cohen's κ of two labelers (indices) over the units both rated. */
export type CohenKappa = {
  kappa: Figure | null;
  /** With linear weights: a tie is half as far from a preference as the opposite is. */
  weighted_kappa: number | null;
};

/** K ≥ 2 completions of one prompt, to be ranked by `target_overlap` people. */
export type ComparisonSet = {
  id: string;
  prompt_id: string;
  kind: SetKind;
  target_overlap: number;
  /** `random`, `uncertainty`, `disagreement`, `versus`, `stored`, `import`, `ask`. */
  selection_policy: string;
  selection_score: number | null;
  status: SetStatus;
  /** In storage order; labelers see them in the order of the assignment's `order_seed`. */
  completion_ids: string[];
  created: number;
};

export type CompletionScore = {
  completion_id: string;
  /** Log-odds within the set. */
  score: number;
};

export type Components = {
  securitySchemes: Record<string, any>;
  schemas: Record<string, any>;
};

/** Ranked sets, the most disputed first. */
export type ConsensusList = {
  data: ListedConsensus[];
  /** Number of all ranked sets. */
  total: number;
};

/** One author of the table: a model version, or `human` for the answers people wrote. */
export type Contestant = {
  model_version_id: string | null;
  name: string;
  /** Natural log-odds over the mean of the table, with the bootstrap's interval; n = its comparisons. */
  strength: Figure;
  /** The strength in Elo points: 400 / ln 10 per log-odd, 0 in the middle. */
  elo: number;
  /** Share of the bootstrap's replicates in which it came first. */
  best: number;
};

/** Comparison sets that follow each other: each turn's prompt is the prompt of the turn before, one of its completions
 * and the labeler's next message. */
export type Conversation = {
  id: string;
  labeler_id: string;
  created: number;
  /** In their order, at least two. */
  turns: ConversationTurn[];
};

/** One comparison set of a conversation. */
export type ConversationTurn = {
  /** Counts from 1. */
  turn: number;
  set_id: string;
  /** The completion of the turn before that this turn's prompt contains; null in the first turn. */
  continued: string | null;
  /** The labeler's latest judgment of the set; null while there is none. */
  judgment_id: string | null;
  created: number;
};

/** A completion's text as the labeler would have it. */
export type CorrectedText = {
  completion_id: string;
  text: string;
};

/** A project with the amounts of its data. */
export type CountedProject = {
  id: string;
  /** Unique. */
  name: string;
  /** µs UTC; 0 for the project that every installation has. */
  created: number;
  /** Since when nothing is handed out from it (µs UTC); null for a project in use. */
  archived: number | null;
  counts: ProjectCounts;
};

/** A whole list. */
export type CountedProjectList = {
  data: CountedProject[];
};

/** Number of tokens of a rendered conversation. */
export type CountedTokens = {
  input_tokens: number;
};

/** Counts for the overview of the loop. */
export type Counts = {
  prompts: number;
  completions: number;
  sets_open: number;
  sets_done: number;
  /** Open sets that every active labeler has judged or skipped. */
  sets_stuck: number;
  judgments: number;
  demonstrations: number;
  labelers: number;
  /** Leases that were renewed within the last minutes. */
  leases: number;
  jobs_queued: number;
  jobs_running: number;
  feedback_events: number;
};

/** An invite with its token, which is shown once. */
export type CreatedInvite = {
  invite: InviteView;
  token: string;
  /** The page and the token as a path of this server. */
  url: string;
};

/** An API key with its secret, which is shown once. */
export type CreatedKey = {
  id: string;
  name: string;
  /** Of `admin`, `feedback`, `inference`. */
  scopes: string[];
  labeler_id: string | null;
  /** Prompt and generated tokens a day (UTC); null = no limit. */
  daily_tokens: number | null;
  origin: KeyOrigin;
  revoked: boolean;
  created: number;
  key: string;
};

/** A new person with the link that signs them in. */
export type CreatedLabeler = {
  id: string;
  name: string;
  role: Role;
  active: boolean;
  /** Judgments per day (UTC); `null` = as configured, 0 = no limit. */
  daily_quota?: number | null;
  /** When the person's data was erased on request; the row is kept, because judgments refer to it. */
  erased?: number | null;
  created: number;
  link: CreatedLink;
};

/** A sign-in link with its token, which is shown once. */
export type CreatedLink = {
  id: string;
  created: number;
  /** End of its validity; null = until it is revoked or replaced. */
  expires: number | null;
  /** The last sign-in with it. */
  used: number | null;
  token: string;
  /** The page and the token as a path of this server. */
  url: string;
};

/** A webhook with its secret, which is shown once. */
export type CreatedWebhook = {
  id: string;
  url: string;
  events: WebhookEvent[];
  /** Events from before this time are not sent. */
  created: number;
  /** `whsec_` and 32 bytes in base64: the key of the signatures. */
  secret: string;
};

/** Points of a job's curves. */
export type Curves = {
  metrics: Metric[];
};

/** A frozen list of the judgments that a training run uses. */
export type DatasetVersion = {
  id: string;
  /** Unique, if given; versions made by jobs have none. */
  name: string | null;
  filter: any;
  as_of: number;
  /** SHA-256 (hex) of the exported JSONL. */
  sha256: string;
  n_sets: number;
  n_pairs: number;
};

/** A whole list. */
export type DatasetVersionList = {
  data: DatasetVersion[];
};

/** Judgments of one day. */
export type DayCount = {
  /** Days since the epoch, UTC. */
  day: number;
  judgments: number;
  /** Of these, skips. */
  skips: number;
};

export type DeletedFile = {
  id: string;
  object: 'file';
  deleted: boolean;
};

/** How far a delivery is. */
export type DeliveryState = 'pending' | 'delivered' | 'failed';

/** A human-written ideal answer: SFT data. */
export type Demonstration = {
  prompt_id: string;
  completion_id: string;
  labeler_id: string | null;
  created: number;
};

/** Token ids as text. */
export type Detokenized = {
  prompt: string;
};

/** Memory of a device, in bytes. */
export type DeviceMemory = {
  used: number;
  total: number;
};

/** Current figures of a device that serves. */
export type DeviceStats = {
  /** Name, such as `cuda:0`. */
  device: string;
  /** Whether its last steps succeeded. A device that fails gets no requests while another one works. */
  works: boolean;
  /** Samples that it generates. */
  running: number;
  /** Memory that loaded models use, and all that models may use. */
  models: DeviceMemory;
  /** Pages of the key-value cache that running samples hold. A page has 16 tokens. */
  pages_used: number;
  /** All pages of the key-value cache. */
  pages_total: number;
  /** Share of the last second in which the device computed, 0 to 1, from NVML. */
  utilization?: number | null;
  /** Memory that all programs use, and that the device has, from NVML. */
  all_programs?: DeviceMemory | null;
};

/** One thing that is rated of every completion. */
export type Dimension = {
  /** Names the dimension in ratings, exports and figures: 1 to 64 of a-z, 0-9 and _. */
  key: string;
  /** What labelers read, by language. */
  label: Record<string, string>;
  kind: DimensionKind;
  /** A ranking must rate every completion on it. A flag that is not required and not set counts as no. */
  required: boolean;
  /** Of `likert`: 2 to 10. */
  points?: number | null;
  /** Of `likert`: what 1 means, by language. */
  low?: Record<string, string>;
  /** Of `likert`: what the highest number means, by language. */
  high?: Record<string, string>;
  /** Of `tags`: tags that the page offers. */
  suggestions?: string[];
};

/** Agreement of the judge's ranking with people's ratings on one dimension of a rubric: of two completions that a
 * person rated, the one with the higher rating, or with yes, counts as preferred. */
export type DimensionAgreement = {
  /** Version of the rubric. */
  rubric: string;
  /** Key of a dimension of kind `likert` or `flag`. */
  dimension: string;
  /** Of the dimension, by language. */
  label: Record<string, string>;
  /** Sets that the judge and at least one person ranked. */
  shared_sets: number;
  /** Compared pairs of completions, once for each person. */
  pairs: number;
  /** Share of pairs on which judge and person say the same, ties included. */
  same: Figure | null;
  /** The same of the pairs on which both have a preference. */
  same_without_ties: Figure | null;
  /** Cohen's κ: 0 is the agreement of chance, 1 is complete. */
  kappa: Figure | null;
  /** κ with linear weights: a tie is half as far from a preference as the opposite is. */
  weighted_kappa: number | null;
};

/** How a dimension was rated. Intervals resample whole sets. */
export type DimensionFigures = {
  key: string;
  /** By language. */
  label: Record<string, string>;
  kind: DimensionKind;
  ratings: number;
  completions: number;
  labelers: number;
  /** Mean of `likert`, share of yes of `flag`; null for `tags` and without ratings. `n` counts sets. */
  mean: Figure | null;
  /** How often each value was given: 1 to the highest of `likert`; no, yes of `flag`; empty for `tags`. */
  counts: number[];
  /** The most frequent tags with how often they were given. */
  tags: TagCount[];
  /** Krippendorff's α, ordinal for `likert` and nominal for `flag`. Null for `tags`, and where no completion has two
   * ratings or all ratings are the same. */
  alpha: Figure | null;
  /** Share of pairs of labelers who gave the same completion the same value. */
  same: Figure | null;
};

/** One thing that is rated of every completion. */
export type DimensionInput = {
  /** Names the dimension in ratings, exports and figures: 1 to 64 of a-z, 0-9 and _. */
  key: string;
  /** What labelers read, by language. */
  label: Record<string, string>;
  kind: DimensionKind;
  /** A ranking must rate every completion on it. A flag that is not required and not set counts as no. */
  required?: boolean;
  /** Of `likert`: 2 to 10. */
  points?: number | null;
  /** Of `likert`: what 1 means, by language. */
  low?: Record<string, string>;
  /** Of `likert`: what the highest number means, by language. */
  high?: Record<string, string>;
  /** Of `tags`: tags that the page offers. */
  suggestions?: string[];
};

/** How a dimension is rated. */
export type DimensionKind = 'likert' | 'flag' | 'tags';

export type DocumentText = {
  text: string;
};

/** Counts of a draw: why fewer sets than requested were made, and how their answers were generated. */
export type DrawReport = {
  /** Stored prompts that match the request's filter. For `disagreement`: sets that were ranked. */
  found: number;
  /** Left out: the prompt already has a set, and the request does not allow another. */
  has_set: number;
  /** Left out: the prompt is from a request, and `privacy.learn_from_requests` is off. */
  requests: number;
  /** Left out: raw text given to `/v1/completions`, which is used only when requested by source. */
  raw_text: number;
  /** Left out: fewer than two answers with text. */
  few_answers: number;
  /** Left out: all answers are equal, even after resampling. */
  equal_answers: number;
  /** Left out: the prompt is too long for the model's context. */
  too_long: number;
  /** `disagreement` left out: people agree on the set, too few have ranked it, it is still open for judgments, or a
   * reviewer has decided it. */
  agreed: number;
  single: number;
  waiting: number;
  settled: number;
  /** Sets with fewer answers than requested, because there were no more different ones. */
  smaller: number;
  /** Numbers of generated answers, of answers truncated at `max_tokens`, and of answers that replaced equal or empty
   * ones. */
  answers: number;
  cut_off: number;
  redrawn: number;
  /** Pieces of text received so far, about one per token: the progress of a slow draw. */
  pieces: number;
  /** How the answers are sampled; absent where none are. */
  max_tokens: number | null;
  temperature: number | null;
  top_p: number | null;
  /** Of a tournament: the versions by strength, best first. */
  order?: TournamentPlace[];
  /** Of a tournament: whether the order has the requested certainty. */
  certain?: boolean;
};

export type DrawState = 'running' | 'done' | 'failed' | 'cancelled';

/** How numbers are held. */
export type Dtype = 'f32' | 'bf16' | 'q8_0' | 'q4_0';

/** Current guidelines with their source. */
export type EditableGuidelines = {
  version: string;
  lang: string;
  /** When an administrator wrote them (µs UTC); null for the configured file and the built-in text. */
  since: number | null;
  html: string;
  /** Markdown. */
  text: string;
};

export type Embedding = {
  object: 'embedding';
  index: number;
  embedding: Vector;
};

/** One vector for each text, in the order of the request. */
export type EmbeddingList = {
  object: 'list';
  data: Embedding[];
  model: string;
  usage: EmbeddingUsage;
  instructd: Origin;
};

export type EmbeddingUsage = {
  prompt_tokens: number;
  total_tokens: number;
};

/** The last event. */
export type EndOfStream = '[DONE]';

/** What to do with the judgments of a person whose data is erased. */
export type Erase = 'anonymise' | 'remove';

/** The result of an erasure, and the data that it cannot reach. */
export type Erasure = {
  judgments: number;
  demonstrations: number;
  feedback_events: number;
  sessions: number;
  keys: number;
  invites: number;
  links: number;
  /** Sets that they made and that nobody else judged. */
  sets: number;
  /** Number of lines removed from the files of training jobs. */
  job_lines: number;
  /** Backups whose manifests now name the person: a restore of them erases the person again. */
  backups: string[];
  /** Places where the person's texts may remain, as sentences. */
  not_reached: string[];
};

/** The body of every error response. */
export type Error = {
  error: ErrorDetail;
};

export type ErrorDetail = {
  message: string;
  /** `invalid_request_error`, `authentication_error`, `permission_error`, `conflict_error`, `rate_limit_error`,
   * `service_unavailable_error` or `server_error`. */
  type: string;
  /** The field, parameter or header at fault. */
  param: string | null;
  /** A stable code of the case. */
  code: string | null;
};

/** Response of `POST /admin/jobs/estimate`. */
export type Estimate = {
  /** Peak memory of the training process. */
  memory_bytes: number;
  /** null when the amount of data is not known. */
  seconds: Seconds | null;
  /** How the figures were obtained, in English. */
  basis: string;
  /** The same as data. */
  assumptions: Assumption[];
  /** Optimizer steps (RL: iterations); null when the amount of data is not known. */
  steps: number | null;
  /** Whether that much memory is available now; null when the system does not report it. */
  fits: boolean | null;
  available_memory_bytes: number | null;
};

export type Evidence = {
  model: VersionName;
  /** The active version of its kind. */
  active: VersionName | null;
  parent: VersionName | null;
  finding: Finding;
  accuracy: Accuracy | null;
  /** What the accuracy is compared with. */
  baselines: Baseline[];
  /** How often two people agree about a pair that both decided. */
  labeler_agreement: Figure | null;
  reward: BeforeAfter | null;
  gold: BeforeAfter | null;
  /** Nats per sequence, against the policy that the run started from. */
  kl: Figure | null;
  /** The version that win rate and samples compare with: the active one, or the parent of the active one. */
  against: VersionName | null;
  /** The share of people's rankings in which it is ahead of `against`; a tie counts half, n is prompts. */
  win_rate: Figure | null;
  /** The share of pairs in which its run's reward scored its response above the start policy's; n is prompts. */
  reward_win_rate: Figure | null;
  /** The same by the run's held-out reward. */
  gold_win_rate: Figure | null;
  samples: SideBySide[];
  new_rankings: number;
  rolled_back: number | null;
};

/** A version's figures without samples. */
export type EvidenceSummary = {
  finding: Finding;
  accuracy: Accuracy | null;
  reward: BeforeAfter | null;
  kl: Figure | null;
  win_rate: Figure | null;
};

export type ExpectedTier = {
  completion_id: string;
  tier: number;
};

/** The error of a refused import, with its report. */
export type FailedImport = {
  imported: number;
  /** Records that existed and were changed by the file: tags, language, answer of a prompt; a ranking that became a
   * known answer. */
  updated: number;
  /** Records that existed already. */
  skipped: number;
  /** Lines that could not be used (all of them; `errors` lists the first hundred). */
  failed: number;
  errors: LineError[];
  /** Lines that were stored in part. */
  warnings: LineError[];
  /** Unknown fields, with the lines that have them. */
  ignored_fields: Record<string, number>;
  /** Why the file was not read completely. */
  stopped?: string | null;
  error: ErrorDetail;
};

/** A thumb, score or edit that an application or a chat user gives to one completion. */
export type FeedbackEvent = {
  id: string;
  completion_id: string;
  /** `thumb`, `score`, `edit`, `comment`. */
  kind: string;
  value: any;
  actor_hash: string | null;
  idempotency_key: string;
  created: number;
};

/** A figure with its 95 % interval (absent if the data does not allow one) and its n. */
export type Figure = {
  value: number;
  low: number | null;
  high: number | null;
  n: number;
};

/** A file, without its text. */
export type File = {
  id: string;
  object: 'file';
  bytes: number;
  /** Seconds since 1970. */
  created_at: number;
  /** Time of its removal, in seconds since 1970. */
  expires_at: number;
  filename: string;
  purpose: FilePurpose;
  status: 'processed';
};

/** One page of a list, newest first, OpenAI's form. */
export type FileListing = {
  object: 'list';
  data: File[];
  first_id: string | null;
  /** Id of the last row, for `?after=` of the next page. */
  last_id: string | null;
  has_more: boolean;
};

/** The purpose of a file. */
export type FilePurpose = 'batch' | 'batch_output';

export type FilledGap = {
  /** Position of the gap among the tokens. */
  position: number;
  /** The most likely first. */
  tokens: FilledToken[];
  /** In the order of the request. */
  targets: FilledToken[];
};

/** Candidates for the gaps. */
export type FilledGaps = {
  object: 'fill_mask';
  model: string;
  gaps: FilledGap[];
  instructd: Origin;
  /** The most likely label; only with `verbalizers`. */
  answer?: string | null;
  /** The most likely first; only with `verbalizers`. */
  labels?: RankedLabel[] | null;
};

export type FilledToken = {
  token: string;
  id: number;
  logprob: number;
  probability: number;
};

export type Finding = {
  code: FindingCode;
  /** Whether the overview suggests to promote it. */
  worth_promoting: boolean;
};

/** What the figures show. */
export type FindingCode = 'better_than_chance' | 'not_above_baseline' | 'chance' | 'unmeasured' | 'preferred' | 'not_preferred' | 'reward_fell' | 'undecided' | 'rolled_back';

export type FinishReason = 'stop' | 'length' | 'abort';

export type Flag = {
  completion_id?: string | null;
  code: string;
  note?: string | null;
};

/** A deleted response. */
export type Forgotten = {
  id: string;
  object: 'response.deleted';
  deleted: boolean;
};

/** A stored version of guidelines. */
export type FormerGuidelines = {
  lang: string;
  /** Null when the version returned to the configured file or the built-in text. */
  version: string | null;
  /** Markdown. */
  text: string;
  created: number;
  created_by: string;
};

export type FunctionDelta = {
  name?: string | null;
  arguments: string;
};

/** The version of a response, and the ids of its stored texts. */
export type Generated = {
  /** In the order of the choices; null for empty texts, which are not stored. */
  completion_ids: (string | null)[];
  model_version: string;
  /** As in the request, or as drawn by the server. */
  seed: number;
};

/** Comparisons of one thing with another. */
export type HeadToHead = {
  wins: number;
  losses: number;
  ties: number;
  /** (wins + ties / 2) / all; `null` when they never met. */
  win_rate: number | null;
  /** The model's expectation of that rate. */
  expected: number;
};

/** The process is alive. */
export type Health = {
  status: 'ok';
};

/** Report of an import. Bad lines are skipped and listed; good ones are stored. */
export type ImportReport = {
  imported: number;
  /** Records that existed and were changed by the file: tags, language, answer of a prompt; a ranking that became a
   * known answer. */
  updated: number;
  /** Records that existed already. */
  skipped: number;
  /** Lines that could not be used (all of them; `errors` lists the first hundred). */
  failed: number;
  errors: LineError[];
  /** Lines that were stored in part. */
  warnings: LineError[];
  /** Unknown fields, with the lines that have them. */
  ignored_fields: Record<string, number>;
  /** Why the file was not read completely. */
  stopped?: string | null;
};

export type Info = {
  title: string;
  version: string;
  description: string;
};

/** The person an invite is for. */
export type InviteGreeting = {
  name: string | null;
  role: Role;
  /** µs UTC. */
  expires: number;
};

/** An invite without its token. */
export type InviteView = {
  id: string;
  role: Role;
  /** Name of the invited person. */
  name: string | null;
  note: string | null;
  expires: number;
  revoked: boolean;
  used_by: string | null;
  created: number;
};

/** A whole list. */
export type InviteViewList = {
  data: InviteView[];
};

export type Item = {
  completion_id: string;
  /** 0 is best; equal tiers are a tie. */
  tier: number;
  /** 1 to 10. */
  rating?: number | null;
};

/** Name, note and tags of a job, and who queued it. They do not affect the computation. */
export type Job = {
  id: string;
  /** Recipe name: `sft`, `reward`, `ppo`, … */
  kind: string;
  args: any;
  state: JobState;
  /** Unique among non-terminal jobs, if given. */
  unique_key: string | null;
  priority: number;
  attempt: number;
  /** Crashes and lost leases since the last new checkpoint. */
  crash_count: number;
  lease_owner: string | null;
  lease_expires: number | null;
  cancel_requested: boolean;
  checkpoint_uri: string | null;
  external_ref: string | null;
  progress: Progress | null;
  /** The recipe's result when it succeeded (metrics, published version…). */
  result: any;
  error: string | null;
  /** Shown instead of the recipe's name. */
  name: string | null;
  note: string | null;
  tags: string[];
  /** The labeler who queued it; `null` for jobs of older releases. */
  created_by: string | null;
  created: number;
  started: number | null;
  finished: number | null;
};

/** One line of a job's log: `state`, `progress`, `log`, `sample`, `warning`. */
export type JobEvent = {
  job_id: string;
  seq: number;
  kind: string;
  data: any;
  created: number;
};

export type JobEventData = {
  seq: number;
  /** `state`, `progress`, `log`, `sample` or `warning`. */
  kind: string;
  data: any;
  created: number;
} | Error;

/** The current events, with `?format=json`. */
export type JobEvents = {
  data: JobEvent[];
  state: JobState;
};

export type JobState = 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled';

/** A job with its author's current name. */
export type JobView = {
  id: string;
  /** Recipe name: `sft`, `reward`, `ppo`, … */
  kind: string;
  args: any;
  state: JobState;
  /** Unique among non-terminal jobs, if given. */
  unique_key: string | null;
  priority: number;
  attempt: number;
  /** Crashes and lost leases since the last new checkpoint. */
  crash_count: number;
  lease_owner: string | null;
  lease_expires: number | null;
  cancel_requested: boolean;
  checkpoint_uri: string | null;
  external_ref: string | null;
  progress: Progress | null;
  /** The recipe's result when it succeeded (metrics, published version…). */
  result: any;
  error: string | null;
  /** Shown instead of the recipe's name. */
  name: string | null;
  note: string | null;
  tags: string[];
  /** The labeler who queued it; `null` for jobs of older releases. */
  created_by: string | null;
  created: number;
  started: number | null;
  finished: number | null;
  /** Name of the person who queued it. */
  author: string | null;
};

/** One page of a list that can be searched, newest first. A search for a text ends after about two seconds, however many
 * rows it has found; `after` continues it. */
export type JobViewSearchPage = {
  data: JobView[];
  /** For `?after=` of the next page: id of the last row, or of the last one that the search looked at. Null when the page
   * is empty and nothing is left to search. */
  after: string | null;
  /** Number of all rows that match the filter. Null when it is not known: searches are counted only if one request has
   * searched everything. */
  total: number | null;
  /** Null, unless the search ended before the page was full: rows older than this (µs UTC) have not been searched. */
  searched_to: number | null;
};

/** Figures of one judge that was told one text about good answers. */
export type JudgeFigures = {
  labeler_id: string;
  name: string;
  /** What the judge was told about good answers. */
  criteria: string;
  /** Sets that the judge ranked by these criteria. */
  sets: number;
  /** Mean doubt over these sets, 0 to 1. */
  doubt: number;
  /** Sets that the judge and at least one person ranked. */
  shared_sets: number;
  /** Compared pairs of completions, once for each person. */
  pairs: number;
  /** Share of pairs on which judge and person say the same, ties included. */
  same: Figure | null;
  /** The same of the pairs on which both have a preference. */
  same_without_ties: Figure | null;
  /** Cohen's κ: 0 is the agreement of chance, 1 is complete. */
  kappa: Figure | null;
  /** κ with linear weights: a tie is half as far from a preference as the opposite is. */
  weighted_kappa: number | null;
  /** By model version that wrote one of the two completions, with the most compared pairs first. */
  versions: VersionAgreement[];
  /** By dimension of each rubric by which people rated the same sets, in the order of the rubrics. */
  dimensions: DimensionAgreement[];
};

/** A language model's ranking of the set. */
export type JudgeRanking = {
  id: string;
  labeler: LabelerName;
  /** What the model was told about good answers. */
  criteria: string;
  /** 0 to 1. */
  doubt: number;
  items: ExpectedTier[];
  created: number;
};

/** Agreement of judges with people. */
export type JudgesReport = {
  /** One entry for each judge and each text about good answers that it was given. */
  judges: JudgeFigures[];
  /** Names of the model versions in the figures, by id. */
  versions: Record<string, string>;
  resampling: Resampling;
};

/** One person's judgment of one set. Append-only: a correction is a new revision that supersedes. */
export type Judgment = {
  id: string;
  assignment_id: string | null;
  set_id: string;
  labeler_id: string;
  revision: number;
  supersedes_id: string | null;
  outcome: Outcome;
  strength: Strength | null;
  rationale: string | null;
  active_ms: number;
  wall_ms: number;
  guideline_version: string | null;
  /** Of the rubric that `ratings` are by; null for a judgment without a rubric. */
  rubric_version: string | null;
  idempotency_key: string;
  /** One entry for each completion of the set when `outcome` is `ranked`; else may be empty. */
  items: JudgmentItem[];
  flags: JudgmentFlag[];
  /** In the order of completion id and dimension. */
  ratings: Rating[];
  /** Spans marked as wrong, in the order of completion id and start. */
  spans: Span[];
  created: number;
  /** The labeler's knowledge when judging; set by the store. */
  knowledge: Knowledge;
};

export type JudgmentFlag = {
  completion_id: string | null;
  code: string;
  note: string | null;
};

/** Tier 0 is best; equal tiers are a tie. */
export type JudgmentItem = {
  completion_id: string;
  tier: number;
  shown_position: number;
  rating: number | null;
};

/** One page of a list, newest first. */
export type JudgmentPage = {
  data: Judgment[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

/** The origin of a key. */
export type KeyOrigin = 'created' | 'generated';

/** An API key without its secret. */
export type KeyView = {
  id: string;
  name: string;
  /** Of `admin`, `feedback`, `inference`. */
  scopes: string[];
  labeler_id: string | null;
  /** Prompt and generated tokens a day (UTC); null = no limit. */
  daily_tokens: number | null;
  origin: KeyOrigin;
  revoked: boolean;
  created: number;
};

/** A whole list. */
export type KeyViewList = {
  data: KeyView[];
};

/** The information about a set that a labeler had been shown before judging it: none, the authors of the
 * completions, or the expected answer. Only blind judgments count in figures and data sets. */
export type Knowledge = 'blind' | 'authors' | 'answer';

export type KnownAnswerView = {
  tiers: ExpectedTier[];
  /** Markdown. */
  explanation: string | null;
};

export type Labeler = {
  id: string;
  name: string;
  role: Role;
  active: boolean;
  /** Judgments per day (UTC); `null` = as configured, 0 = no limit. */
  daily_quota?: number | null;
  /** When the person's data was erased on request; the row is kept, because judgments refer to it. */
  erased?: number | null;
  created: number;
};

/** One labeler's row. Shares carry Jeffreys' intervals; `null` if there is nothing to count. */
export type LabelerFigures = {
  labeler_id: string;
  name: string;
  role: string;
  active: boolean;
  /** Latest revisions, skips too. */
  judgments: number;
  skip_rate: Figure | null;
  unrankable_rate: Figure | null;
  all_bad_rate: Figure | null;
  /** Mean share of a ranking's pairs that were given the same tier; `n` counts rankings. */
  tie_rate: Figure | null;
  /** Median and nine-tenths quantile of the time at work on a judgment, ms; judgments by API have none. */
  median_active_ms: number | null;
  p90_active_ms: number | null;
  /** Of the sets where the first-shown and the last-shown completion differ in tier, the share in which the first is
   * preferred; ½ = no position bias. Sets with known answers are left out. */
  left_bias: Figure | null;
  /** Mean share of each gold or calibration set's strict pairs that were ranked as expected; a tie
   * counts half. */
  gold_accuracy: Figure | null;
  /** Mean share of a set's pairs with a majority of the others on which this labeler agrees with it.
   * `n` counts sets. */
  agreement_with_others: Figure | null;
  /** γ of the noisy Bradley–Terry model: the labeler's weight in the consensus. */
  attention: number | null;
};

/** Id and name of a person. */
export type LabelerName = {
  id: string;
  name: string;
};

/** A prompt in the labelers' form. */
export type LabelerPrompt = {
  id: string;
  messages: ShownMessage[];
  lang: string | null;
};

/** A person with their active sign-in link. */
export type LabelerWithLink = {
  id: string;
  name: string;
  role: Role;
  active: boolean;
  /** Judgments per day (UTC); `null` = as configured, 0 = no limit. */
  daily_quota?: number | null;
  /** When the person's data was erased on request; the row is kept, because judgments refer to it. */
  erased?: number | null;
  created: number;
  link: LinkView | null;
  /** The code that they see when they have done their quota; null where no codes are used. */
  completion_code: string | null;
};

/** A whole list. */
export type LabelerWithLinkList = {
  data: LabelerWithLink[];
};

/** The labelers whose rankings a data set contains. */
export type LabelersUsed = 'human' | 'model' | 'all';

/** The heads of one layer. */
export type LayerMaps = {
  /** From 0. */
  layer: number;
  /** `heads[h][i][j]`: how much token i attends to token j, rounded to five digits. */
  heads: number[][][];
};

/** A ranking in the data of a run, as it was when the data was frozen. */
export type LearnedJudgment = {
  judgment_id: string;
  labeler_id: string;
};

/** A run that has learned from judgments of a set. */
export type LearnedRun = {
  job_id: string;
  /** The recipe. */
  kind: string;
  name: string | null;
  /** The version that the run published. */
  model: string | null;
  /** The reward model through which an RL run learned from them; null for a run on the rankings themselves. */
  through: string | null;
  judgments: LearnedJudgment[];
};

/** A whole list. */
export type LearnedRunList = {
  data: LearnedRun[];
};

/** A set that the caller holds a lease on, to be ranked. */
export type LeasedSet = {
  assignment_id: string;
  lease_token: string;
  /** µs UTC. */
  expires_at: number;
  set_id: string;
  project_id: string;
  /** `normal`, or `calibration`: its expected answer is shown after the judgment. Gold sets read `normal`. */
  kind: SetKind;
  prompt: LabelerPrompt;
  /** In the order in which they are shown. */
  completions: BlindCompletion[];
  /** Version of the current guidelines, to be sent with the judgment. */
  guideline_version: string;
  /** The active rubric: a judgment sends its version and its ratings. Null without one. */
  rubric: Rubric | null;
  me: OwnCounts;
  queue: Queue;
  /** Progress with the first calibration sets; null when they are done. */
  onboarding: Onboarding | null;
  /** Which of the onboarding's calibration sets this is, from 1; null for other sets. */
  practice_number: number | null;
};

/** Figures of length bias; `null` if the data does not allow one. */
export type LengthBias = {
  preferences: number;
  /** Number of prompts; preferences of one prompt are not independent. */
  prompts: number;
  /** Weighted share in which the longer text is preferred, of those of different length. */
  longer_wins: Figure | null;
  /** β of P(preferred) = σ(β log2(length / other length)), without intercept: log-odds per doubling. */
  per_doubling: Figure | null;
  /** Mean characters of preferred and other texts. */
  mean_preferred: number | null;
  mean_other: number | null;
};

/** An unusable line; lines count from 1, and 0 means the whole file. */
export type LineError = {
  line: number;
  message: string;
};

/** A sign-in link without its token. */
export type LinkView = {
  id: string;
  created: number;
  /** End of its validity; null = until it is revoked or replaced. */
  expires: number | null;
  /** The last sign-in with it. */
  used: number | null;
};

/** The consensus on a set with its prompt. */
export type ListedConsensus = {
  set_id: string;
  judgments: number;
  /** Mean distance of two labelers on a pair of completions: 0 the same, ½ a tie against a preference, 1
   * opposite. `null` with fewer than two rankings. */
  disagreement: number | null;
  completions: CompletionScore[];
  /** One line of the prompt. */
  prompt: string | null;
};

/** A conversation with its first message. */
export type ListedConversation = {
  id: string;
  labeler_id: string;
  created: number;
  /** In their order, at least two. */
  turns: ConversationTurn[];
  /** One line of the first prompt. */
  prompt: string | null;
};

/** One page of a list, newest first. */
export type ListedConversationPage = {
  data: ListedConversation[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

export type ListedItem = {
  completion_id: string;
  /** 0 is best; equal tiers are a tie. */
  tier: number;
  shown_position: number;
};

/** A current judgment with the prompt it is about. */
export type ListedJudgment = {
  id: string;
  set_id: string;
  kind: SetKind;
  /** One line of the prompt. */
  prompt: string;
  labeler: LabelerName;
  revision: number;
  outcome: Outcome;
  strength: Strength | null;
  rationale: string | null;
  /** Active time, ms; null when it is not known. */
  active_ms: number | null;
  /** In shown order. */
  items: ListedItem[];
  created: number;
};

/** One page of a list that can be searched, newest first. A search for a text ends after about two seconds, however many
 * rows it has found; `after` continues it. */
export type ListedJudgmentSearchPage = {
  data: ListedJudgment[];
  /** For `?after=` of the next page: id of the last row, or of the last one that the search looked at. Null when the page
   * is empty and nothing is left to search. */
  after: string | null;
  /** Number of all rows that match the filter. Null when it is not known: searches are counted only if one request has
   * searched everything. */
  total: number | null;
  /** Null, unless the search ended before the page was full: rows older than this (µs UTC) have not been searched. */
  searched_to: number | null;
};

/** A set with its prompt and progress. */
export type ListedSet = {
  id: string;
  prompt_id: string;
  kind: SetKind;
  target_overlap: number;
  /** `random`, `uncertainty`, `disagreement`, `versus`, `stored`, `import`, `ask`. */
  selection_policy: string;
  selection_score: number | null;
  status: SetStatus;
  /** In storage order; labelers see them in the order of the assignment's `order_seed`. */
  completion_ids: string[];
  created: number;
  /** One line of the prompt. */
  prompt: string;
  /** Number of people who judged it, and of those who skipped it. */
  judged: number;
  skipped: number;
  /** Current leases. */
  held: number;
  /** Number of completions that end at the length limit. */
  cut_off: number;
};

/** One page of a list that can be searched, newest first. A search for a text ends after about two seconds, however many
 * rows it has found; `after` continues it. */
export type ListedSetSearchPage = {
  data: ListedSet[];
  /** For `?after=` of the next page: id of the last row, or of the last one that the search looked at. Null when the page
   * is empty and nothing is left to search. */
  after: string | null;
  /** Number of all rows that match the filter. Null when it is not known: searches are counted only if one request has
   * searched everything. */
  total: number | null;
  /** Null, unless the search ended before the page was full: rows older than this (µs UTC) have not been searched. */
  searched_to: number | null;
};

/** Bytes of memory by use, from the number of parameters alone. */
export type MemoryNeeds = {
  /** Serving: weights in 16 bits, without the key-value cache. */
  serve: number;
  /** LoRA over frozen f32 weights, without activations: the natural and the packed layout of each matrix, and one more
   * copy while the model is loaded or saved. */
  lora: number;
  /** LoRA over matrices held in 4 bits (`frozen_precision: q4`), embeddings in f32, without activations. */
  lora_q4: number;
  /** All parameters with gradients and Adam's two moments in f32, without activations. */
  full: number;
};

/** One turn of a conversation. `role` is `system`, `user` or `assistant`. */
export type Message = {
  role: string;
  content: string;
};

/** Why a message ended. */
export type MessageEnd = {
  stop_reason: StopReason;
  stop_sequence: string | null;
};

/** One point of a curve. */
export type Metric = {
  step: number;
  name: string;
  value: number;
};

/** A policy in OpenAI's form. */
export type ModelEntry = {
  /** The name that requests give as `model`. */
  id: string;
  object: 'model';
  /** Seconds since 1970. */
  created: number;
  owned_by: string;
  instructd: ModelFacts;
};

export type ModelFacts = {
  version: string;
  stage: string;
  state: ModelState;
  /** Whether its weights are in memory. The following fields are known for loaded models only. */
  loaded: boolean;
  /** Tokens of prompt and answer together; null if an upstream server does not report it. */
  max_context: number | null;
  /** Format of the weights in memory: `f32`, `bf16`, `q8_0`, … */
  weights: string | null;
  parameters: number | null;
};

/** The use of a version's weights; each kind has its own routes. */
export type ModelKind = 'reward' | 'policy' | 'encoder' | 'classifier' | 'prompt_adapter';

/** The policies that requests can name. */
export type ModelList = {
  object: 'list';
  data: ModelEntry[];
};

export type ModelState = 'candidate' | 'active' | 'retired';

/** An immutable set of weights on disk (or behind an upstream server). At most one version of each kind is active. */
export type ModelVersion = {
  id: string;
  kind: ModelKind;
  /** Unique, `[a-z0-9][a-z0-9._-]{0,63}`; the value of `model` in API requests. */
  name: string;
  /** `base`, `sft`, `reward`, `ppo`, … */
  stage: string;
  parent_id: string | null;
  job_id: string | null;
  /** Directory or .gguf file; relative paths are under the data directory. `upstream:NAME` = no files here. */
  artifact_uri: string;
  /** SHA-256 (hex) of the weights file(s). */
  sha256: string;
  metrics: any;
  state: ModelState;
  created: number;
};

/** All model versions, and what was active before. */
export type ModelVersions = {
  data: ModelVersion[];
  /** By kind: the version that the last promotion replaced. */
  previous: Record<string, string>;
  /** Versions whose last activation was rolled back. */
  rolled_back: string[];
  /** Error of the served model, if there is one. */
  warning?: string | null;
};

/** The kind and name of the entity with an id. */
export type NameOf = {
  /** `labeler`, `model`, `key`, `invite`, `dataset`, `job`, `draw` or `set`. */
  kind: string;
  /** The name, the kind of a job, the policy of a draw, one line of a set's prompt. */
  name: string;
};

/** `action` and `reason` are stable codes; `message` is a sentence in English; `values` are the figures of the page's
 * own sentence; `request` is the request of the page's button. */
export type NextAction = {
  action: string;
  /** `reward` or `policy` where the action is about a version of that kind. */
  about?: string | null;
  reason: string;
  values: any;
  message: string;
  request?: any;
};

/** How a text's score is computed from the log-probs of its tokens. */
export type Normalize = 'none' | 'tokens' | 'bytes';

/** Number of calibration sets judged, and of those that come before other work. */
export type Onboarding = {
  done: number;
  needed: number;
};

/** An OpenAPI 3.1 document. */
export type OpenApiDocument = {
  openapi: string;
  info: Info;
  /** By path and method. */
  paths: Record<string, any>;
  components: Components;
};

/** The version that computed the maps. */
export type Origin = {
  model_version: string;
};

export type Outcome = 'ranked' | 'all_bad' | 'unrankable' | 'skip';

export type OutputText = {
  type: 'output_text';
  text: string;
  /** Always empty. */
  annotations: any[];
  /** Always empty. */
  logprobs: any[];
};

export type Overview = {
  /** When the numbers were counted (µs UTC). In a large database that is up to some minutes ago. */
  counted: number;
  counts: Counts;
  active_policy: ModelVersion | null;
  active_reward: ModelVersion | null;
  /** The newest reward model, if none is active. */
  unpromoted_reward: ModelVersion | null;
  evidence: ActiveEvidence;
  next_action: NextAction;
  running_jobs: Job[];
  /** The named project, with the amounts of its data; absent where none is named. */
  project?: CountedProject | null;
  /** The devices that serve; absent on the CPU. */
  devices?: DeviceStats[];
};

/** The caller's own progress. */
export type OwnCounts = {
  name: string;
  done_today: number;
  done_total: number;
  skipped_today: number;
};

export type OwnDay = {
  /** µs UTC at which it began. */
  start: number;
  judgments: number;
};

/** A personal sign-in link. */
export type OwnLink = {
  token: string;
  /** The page and the token as a path of this server. */
  url: string;
};

export type OwnPage = {
  labeler_id: string;
  name: string;
  role: Role;
  done_today: number;
  done_total: number;
  /** Sets that were skipped; not counted above. */
  skipped_today: number;
  skipped_total: number;
  /** Judgments a day; `null` = no limit. */
  quota: number | null;
  quota_left: number | null;
  /** What to enter on the crowd platform once the quota is done; `null` before that, and where no codes are used. */
  completion_code: string | null;
  /** `null` once the calibration sets that come first are done. */
  onboarding: Onboarding | null;
  /** Judgments of the last fourteen UTC days, the oldest first; today is the last. */
  days: OwnDay[];
  median_active_ms: number | null;
  median_active_ms_today: number | null;
  tie_rate: Figure | null;
  skip_rate: Figure | null;
  agreement_with_others: Figure | null;
  /** Over calibration sets, whose answers were shown. */
  calibration_accuracy: Figure | null;
  /** Sets that this labeler can still judge today, those in hand included; at most 1000 are counted. */
  queue_open: number;
};

export type PairScore = {
  index: number;
  object: 'score';
  score: number;
};

/** One of the caller's own judgments. */
export type PastJudgment = {
  id: string;
  assignment_id: string | null;
  set_id: string;
  labeler_id: string;
  revision: number;
  supersedes_id: string | null;
  outcome: Outcome;
  strength: Strength | null;
  rationale: string | null;
  active_ms: number;
  wall_ms: number;
  guideline_version: string | null;
  /** Of the rubric that `ratings` are by; null for a judgment without a rubric. */
  rubric_version: string | null;
  idempotency_key: string;
  /** One entry for each completion of the set when `outcome` is `ranked`; else may be empty. */
  items: JudgmentItem[];
  flags: JudgmentFlag[];
  /** In the order of completion id and dimension. */
  ratings: Rating[];
  /** Spans marked as wrong, in the order of completion id and start. */
  spans: Span[];
  created: number;
  /** The labeler's knowledge when judging; set by the store. */
  knowledge: Knowledge;
  /** One line of the prompt. */
  prompt: string | null;
};

/** One page of a list, newest first. */
export type PastJudgmentPage = {
  data: PastJudgment[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

export type Person = {
  id: string;
  name: string;
  role: Role;
};

/** All data stored about a person, for the person. */
export type PersonalExport = {
  labeler: Labeler;
  judgments: Judgment[];
  /** (prompt, text, when) */
  demonstrations: [string, string, number][];
  /** (created, expires) */
  sessions: [number, number][];
  feedback_events: FeedbackEvent[];
  /** (id, state) of sets held or submitted. */
  assignments: [string, AssignmentState][];
  /** (set, what was shown, when) */
  reveals: [string, Knowledge, number][];
  /** (set, its prompt, when) of sets that they made. */
  sets: [string, string, number][];
  /** (id, sets of its turns, when) of conversations. */
  conversations: [string, string[], number][];
  /** Prompts that they submitted. */
  prompts: [string, Message[]][];
  /** (set, when) of sets that they settled. */
  resolutions: [string, number][];
  /** (language, text, when) of guidelines that they wrote. */
  guidelines: [string, string, number][];
  /** (version, name, when) of rubrics that they stored. */
  rubrics: [string, string, number][];
  /** (version, when) of rubrics that they activated; null for none. */
  rubric_activations: ([string | null, number])[];
  /** (id, kind, name, note) of jobs that they queued. */
  jobs: ([string, string, string | null, string | null])[];
  /** (provider, name there, when) of systems that sign them in. */
  identities: [string, string, number][];
  /** (project, judgments a day, when) of projects that they are a member of; null for their own quota. */
  projects: ([string, number | null, number])[];
  /** (action, key) of the labeling page's keys that they changed. */
  key_map: [string, string][];
  /** (name, when) of settings whose present value is theirs. */
  settings: [string, number][];
  /** Invites that the person accepted. */
  invites: PersonalInvite[];
  links: PersonalLink[];
  keys: PersonalKey[];
  /** The person's entries of the audit trail, newest first. */
  actions: AuditEntry[];
};

export type PersonalInvite = {
  id: string;
  role: Role;
  name: string | null;
  note: string | null;
  created: number;
};

export type PersonalKey = {
  id: string;
  name: string;
  scopes: string[];
  created: number;
};

export type PersonalLink = {
  id: string;
  created: number;
  expires: number | null;
  used: number | null;
};

/** The place of a job's last attempt, and its trainer's log. */
export type PlaceLog = {
  /** Name of the place in the configuration; null for a child process of a server or worker. */
  place: string | null;
  /** The attempt's id there: the submission id in Ray, the job's name in Slurm. */
  id: string | null;
  /** The end of the log, at most 256 KB; null when it cannot be read. */
  text: string | null;
  /** Why there is no text. */
  message: string | null;
};

export type Plan = {
  parameters: number;
  /** Matrices that a token passes through: they determine the arithmetic. */
  matrix_parameters: number;
  lora_parameters: number;
  context: number;
  batch: number;
  /** Forward pass of one token at the end of a full context. */
  flops_per_token: number;
  serve: ServePlan[];
  train: TrainPlan[];
};

/** The presets, or the plan of one of them. */
export type PlanAnswer = PresetList | PresetPlan;

/** The machine and the work. */
export type PlanArgs = {
  /** Memory bandwidth of one device, GB/s (10⁹ bytes). */
  bandwidth_gb_s: number;
  /** Matrix arithmetic of one device, TFLOP/s. */
  tflops: number;
  /** Memory of one device, GiB. */
  memory_gib: number;
  /** Usable share of the memory. */
  usable: number;
  /** Tokens in each sequence; 0 = the model's context. */
  context: number;
  /** Sequences served together, or trained on in one micro-batch. */
  batch: number;
  /** Rank of the adapters on every matrix of the blocks. */
  lora_rank: number;
};

/** How the hidden states of a text become one vector. */
export type Pooling = 'mean' | 'cls' | 'max' | 'mean_sqrt_len' | 'weighted_mean' | 'last_token';

/** A rubric to begin with. */
export type Preset = {
  id: string;
  definition: RubricDefinition;
};

export type PresetList = {
  object: 'list';
  data: PresetView[];
};

export type PresetPlan = {
  object: 'plan';
  preset: PresetView;
  args: PlanArgs;
  plan: Plan;
};

/** A published architecture with its number of parameters. */
export type PresetView = {
  name: string;
  title: string;
  parameters: number;
  /** Parameters of the published architecture, if it differs from the one here. */
  original_parameters: number | null;
  /** Number of parameters as its authors state it. */
  published: string;
  note: string;
  n_layers: number;
  hidden_size: number;
  n_heads: number;
  n_kv_heads: number;
  max_positions: number;
  vocab_size: number;
};

/** The progress of a running job; a total of `null` is not known yet. */
export type Progress = {
  /** The phase: `loading` the model, `preparing` the data, `sampling`, `scoring`, `updating`, `train`,
   * `evaluate`, `saving`, … */
  phase: string;
  /** Progress of the phase within one step: tokens of the samples, passes of the update. */
  phase_done?: number | null;
  phase_total?: number | null;
  step: number;
  total_steps: number | null;
  eta_seconds: number | null;
  tokens_per_second: number | null;
  memory_bytes: number | null;
};

/** A labeling project: prompts and sets with guidelines, a rubric and people of their own. */
export type Project = {
  id: string;
  /** Unique. */
  name: string;
  /** µs UTC; 0 for the project that every installation has. */
  created: number;
  /** Since when nothing is handed out from it (µs UTC); null for a project in use. */
  archived: number | null;
};

/** Amounts of a project's data. */
export type ProjectCounts = {
  prompts: number;
  sets_open: number;
  sets_done: number;
  /** First judgments, without skips. */
  judgments: number;
  members: number;
};

/** A whole list. */
export type ProjectList = {
  data: Project[];
};

/** A person who labels in a project. */
export type ProjectMember = {
  labeler_id: string;
  /** Judgments a day in this project; null = the person's own quota, 0 = no limit. */
  daily_quota: number | null;
  /** µs UTC. */
  created: number;
};

/** A whole list. */
export type ProjectMemberList = {
  data: ProjectMember[];
};

export type Prompt = {
  id: string;
  project_id: string;
  messages: Message[];
  lang: string | null;
  /** The source: `api`, `page`, `import:<file>`, `chat`, `completions`. */
  source: string;
  /** SHA-256 (hex) of the canonical JSON of `messages`, and of the project where it is not the first; unique. */
  content_hash: string;
  split: Split;
  tags: string[];
  /** The reference answer, for rewards that compare with one. */
  answer?: string | null;
  created: number;
};

/** Filter of the prompts of a draw. Empty = all. */
export type PromptFilter = {
  /** Only prompts of this project (id). */
  project?: string | null;
  source?: string | null;
  /** With this tag. */
  tag?: string | null;
  lang?: string | null;
  split?: Split | null;
  /** Include prompts that have an open or finished set. */
  with_sets?: boolean;
  /** Only prompts with at least this many stored completions. */
  min_completions?: number;
};

/** One page of a list, newest first. */
export type PromptPage = {
  data: Prompt[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

/** An OpenID Connect provider. */
export type ProviderOption = {
  /** Its name; null when none is configured. */
  name: string | null;
  /** The path of this server that leads to the provider. */
  path: string;
};

/** Figures of all labelers and their judgments. */
export type QualityReport = {
  /** Number of compared judgments; the figures of labelers also count sets with known answers. */
  judgments: number;
  sets: number;
  agreement: Agreement;
  /** Labeler ids and names of `agreement.cohen`, in its order. */
  cohen_pairs: [string, string][][];
  labelers: LabelerFigures[];
  length: LengthBias;
  resampling: Resampling;
};

export type Queue = {
  /** Sets that the caller can still judge, this one included. */
  open: number;
};

export type RankedChoice = {
  /** Position in the request. */
  index: number;
  label: string;
  /** Among the choices. */
  probability: number;
  /** Log-probs of its words, normalized as requested, minus `calibration`. */
  score: number;
  /** The choice's score in content-free prompts; null unless calibrated. */
  calibration: number | null;
  words: ScoredWord[];
};

/** The choices, the most likely first. */
export type RankedChoices = {
  object: 'choices';
  model: string;
  /** Label of the most likely choice. */
  answer: string | null;
  choices: RankedChoice[];
  usage: TokenUsage;
  instructd: ChoicesOrigin;
};

export type RankedDocument = {
  /** Its index in the request. */
  index: number;
  relevance_score: number;
  /** With `return_documents`. */
  document?: DocumentText | null;
};

/** Filter of a data set's judgments. Empty = all. */
export type RankedFilter = {
  split?: Split | null;
  labeler_id?: string | null;
  /** `normal` when absent. Sets with known answers are judged by everybody and would outweigh the rest. */
  set_kind?: SetKind | null;
  /** Only judgments created at or before this time. */
  as_of?: number | null;
  /** Only sets of prompts with this tag. */
  tag?: string | null;
  /** Only sets of this project (id). */
  project?: string | null;
  /** Include the judgments of others on sets that a reviewer has settled; otherwise only the reviewer's. */
  unsettled?: boolean;
  /** Include preferences derived from applications' feedback: edits, thumbs, scores. */
  feedback?: boolean;
  /** Take the latest revisions even if the authors or the expected answer had been revealed; otherwise the latest
   * blind ones. */
  informed?: boolean;
  /** Leave out prompts that came in only as requests, and feedback on answers to requests. Always set when
   * `privacy.learn_from_requests` is off. */
  without_requests?: boolean;
  /** Rank the completions by their ratings on a dimension of a rubric; sets with fewer than two ratings on it are
   * left out. */
  by_rating?: ByRating | null;
  /** Whose rankings: those of people (`human`), of language models that rank as labelers (`model`), or `all`. */
  labelers?: LabelersUsed;
};

export type RankedLabel = {
  label: string;
  /** Among the labels. */
  probability: number;
  score: number;
};

export type RankedSetIds = {
  id: string;
  prompt_id: string;
  completion_ids: string[];
};

/** A labeler's rating of one completion on one dimension. */
export type Rating = {
  completion_id: string;
  /** Key of the dimension. */
  dimension: string;
  value: RatingValue;
};

/** A value of the kind of its dimension: a number, true or false, or a list of tags. */
export type RatingValue = boolean | number | string[];

/** Figures of the ratings, by version of the rubric: what was said under different versions is never put together. */
export type RatingsReport = {
  /** Those with ratings in scope and the active one; the newest first. */
  rubrics: RubricFigures[];
  resampling: Resampling;
};

/** Whether labelers write the reasons for their ranking. */
export type RationaleUse = 'optional' | 'off' | 'required';

/** The response when requests are served. */
export type Ready = {
  status: 'ready';
  /** Name of the active policy. */
  model: string;
  /** Name of the active encoder. */
  encoder: string | null;
  /** Error of the served model, if there is one. */
  warning?: string | null;
};

export type ReasoningText = {
  type: 'reasoning_text';
  text: string;
};

/** A recipe that jobs can run. */
export type RecipeView = {
  name: string;
  about: string;
  /** JSON Schema of the job's `args`. */
  schema: any;
};

/** A whole list. */
export type RecipeViewList = {
  data: RecipeView[];
};

export type Renewed = {
  /** µs UTC. */
  expires_at: number;
};

/** A judgment with its set as it was shown, to be revised. */
export type ReopenedJudgment = {
  /** What has been revealed to the labeler about the set; a revision with this knowledge does not count as blind. */
  revealed: Knowledge[];
  judgment: Judgment;
  assignment_id: string | null;
  lease_token: string | null;
  set_id: string;
  prompt: LabelerPrompt;
  completions: BlindCompletion[];
  /** The rubric of the judgment, or the active one for a judgment without a rubric. */
  rubric: Rubric | null;
};

/** Numbers of records that came in as requests, which are used for training only if the operator allows it. */
export type RequestCounts = {
  prompts: number;
  completions: number;
  /** Feedback on those completions. */
  feedback_events: number;
};

export type RequestTally = {
  total: number;
  completed: number;
  failed: number;
};

/** Documents in order of relevance. */
export type Reranked = {
  object: 'list';
  model: string;
  /** The best first. */
  results: RankedDocument[];
  usage: TokenUsage;
  instructd: ScoredBy;
};

/** Parameters of the bootstrap: number of replicates and seed. */
export type Resampling = {
  replicates: number;
  seed: number;
};

/** A response. */
export type Response = {
  id: string;
  object: 'response';
  /** Seconds since 1970. */
  created_at: number;
  status: ResponseStatus;
  background: boolean;
  error: ResponseError | null;
  /** Why it is incomplete. */
  incomplete_details: ResponseIncomplete | null;
  instructions: string | null;
  max_output_tokens: number | null;
  model: string;
  output: ResponseItem[];
  parallel_tool_calls: boolean;
  previous_response_id: string | null;
  reasoning: ResponseReasoning;
  service_tier: string;
  /** Whether a later request can continue it. */
  store: boolean;
  temperature: number;
  text: ResponseText;
  /** As in the request. */
  tool_choice: any;
  /** As in the request. */
  tools: any[];
  top_p: number;
  truncation: string;
  /** Null while it is incomplete. */
  usage: ResponseUsage | null;
  user: any;
  metadata: Record<string, any>;
  /** Absent while it is incomplete. */
  instructd?: Generated | null;
};

export type ResponseError = {
  code: string;
  message: string;
};

/** One event of a streamed response. */
export type ResponseEvent = {
  /** The type of the data; `error` when the key or session of the stream has ended. */
  event: string;
  data: ResponseEventData;
};

/** Data of an event; each type has some of the fields. */
export type ResponseEventBody = {
  /** Such as `response.output_text.delta`. */
  type: string;
  /** From 0, without gaps. */
  sequence_number: number;
  response?: Response | null;
  output_index?: number | null;
  item?: ResponseItem | null;
  item_id?: string | null;
  content_index?: number | null;
  part?: OutputText | null;
  delta?: string | null;
  text?: string | null;
  /** Always empty. */
  logprobs?: any[] | null;
  name?: string | null;
  arguments?: string | null;
};

export type ResponseEventData = ResponseEventBody | Error;

export type ResponseIncomplete = {
  reason: 'max_output_tokens';
};

export type ResponseInputDetails = {
  /** Not counted here: always 0. */
  cached_tokens: number;
};

/** One output item of a response. */
export type ResponseItem = {
  type: 'reasoning';
  id: string;
  /** Always empty. */
  summary: any[];
  content: ReasoningText[];
  status: ResponseStatus;
} | {
  type: 'message';
  id: string;
  role: 'assistant';
  status: ResponseStatus;
  content: OutputText[];
} | {
  type: 'function_call';
  id: string;
  call_id: string;
  name: string;
  /** The text of a JSON object; incomplete when the answer was cut off. */
  arguments: string;
  status: ResponseStatus;
};

export type ResponseOutputDetails = {
  /** Not counted here: always 0. */
  reasoning_tokens: number;
};

export type ResponseReasoning = {
  effort: string | null;
  /** Always null. */
  summary: string | null;
};

export type ResponseStatus = 'in_progress' | 'completed' | 'incomplete' | 'failed';

export type ResponseText = {
  /** As in the request. */
  format: any;
};

/** Token counts of a response. */
export type ResponseUsage = {
  input_tokens: number;
  input_tokens_details: ResponseInputDetails;
  output_tokens: number;
  output_tokens_details: ResponseOutputDetails;
  total_tokens: number;
};

/** The current limits, their effect, and the progress of a removal. */
export type Retention = {
  limits: RetentionConfig;
  /** `null` while the amounts are computed for the first time, or for the first time with these limits. */
  outlook: RetentionOutlook | null;
  progress: RetentionProgress;
};

/** Limits on stored data; 0 = no limit. Data that a comparison set, judgment, demonstration, dataset version or
 * published model depends on is never removed. `instructd retention --dry-run` shows what would be removed; a server
 * applies the limits once an hour. */
export type RetentionConfig = {
  /** Days after which requests (prompts and answers of chat and completions, with feedback on them) are removed. */
  request_days: number;
  /** Megabytes of removable requests to keep; the oldest beyond them are removed. */
  request_mb: number;
  /** Days after which feedback events are removed. */
  feedback_days: number;
  /** Megabytes of removable feedback events to keep; the oldest beyond them are removed. */
  feedback_mb: number;
  /** Days after its end for which a job's files are kept: checkpoints and logs, and where no model was published also
   * the training data. */
  job_days: number;
  /** Megabytes of removable files of ended jobs to keep; beyond them, the files of the jobs that ended first are
   * removed. */
  job_mb: number;
};

/** What is stored, and what the current limits remove. */
export type RetentionOutlook = {
  /** When the amounts were computed (µs UTC). In a large database that is up to some minutes ago. */
  counted: number;
  stored: Amounts;
  goes: Amounts;
  /** Feedback and prompts up to these times (µs) are kept, because dataset versions depend on them; `null` = none. */
  kept_feedback_until: number | null;
  kept_prompts_until: number | null;
};

/** Progress of the current or last removal of this process. */
export type RetentionProgress = {
  running: boolean;
  /** Kind of record that is being removed. */
  removing: string | null;
  /** Removed so far, or by the last run. */
  removed: Amounts;
  started: number | null;
  ended: number | null;
  /** Why the last run ended early. */
  error: string | null;
};

export type ReviewedJudgment = {
  judgment: Judgment;
  labeler: LabelerName;
  /** The latest correction of each completion that the labeler corrected. */
  corrections: CorrectedText[];
};

/** A set with its authors and everybody's latest judgments. */
export type ReviewedSet = {
  /** The known answer; null for ordinary sets. */
  known_answer: KnownAnswerView | null;
  set: ComparisonSet;
  prompt: ShownPrompt;
  /** In storage order. */
  completions: AuthoredCompletion[];
  judgments: ReviewedJudgment[];
  /** Rankings by language models, which count nowhere unless a data set asks for them. */
  judges: JudgeRanking[];
  /** The reviewer whose judgment data sets use instead of the others'. */
  settled_by: string | null;
};

/** A reward model's score of each completion. */
export type Rewards = {
  model: string;
  model_version: string;
  /** In the order of the request. */
  scores: number[];
  /** Standard deviation over the heads of an ensemble, on the scale of the score; 0 for other models. */
  stds: number[];
  /** Of a model with heads for a rubric's dimensions: the score of each completion by head, before weights. `ranking`
   * is the head of the labelers' ranking. */
  dimensions?: Record<string, number>[] | null;
};

export type Role = 'labeler' | 'reviewer' | 'admin';

/** A rubric with its version. */
export type Rubric = {
  /** First 12 hex digits of the SHA-256 of the definition. */
  version: string;
  definition: RubricDefinition;
};

/** What a rubric says. Its version is a hash of it, so a rubric cannot be changed, only followed by another. */
export type RubricDefinition = {
  name: string;
  /** In the order in which they are shown. */
  dimensions: Dimension[];
  rationale: RationaleUse;
};

/** What a rubric says. Its version is a hash of it, so a rubric cannot be changed, only followed by another. */
export type RubricDefinitionInput = {
  name: string;
  /** In the order in which they are shown. */
  dimensions: DimensionInput[];
  rationale?: RationaleUse;
};

export type RubricFigures = {
  version: string;
  name: string;
  /** When the version was stored, µs UTC. */
  created: number;
  active: boolean;
  /** In the order of the rubric. */
  dimensions: DimensionFigures[];
};

/** Result of loading the sample. */
export type SampleReport = {
  imported: number;
  /** Records that existed and were changed by the file: tags, language, answer of a prompt; a ranking that became a
   * known answer. */
  updated: number;
  /** Records that existed already. */
  skipped: number;
  /** Lines that could not be used (all of them; `errors` lists the first hundred). */
  failed: number;
  errors: LineError[];
  /** Lines that were stored in part. */
  warnings: LineError[];
  /** Unknown fields, with the lines that have them. */
  ignored_fields: Record<string, number>;
  /** Why the file was not read completely. */
  stopped?: string | null;
  /** The pairs being made for the queue; `null` when the sample had been loaded before. */
  draw: SetDraw | null;
};

export type SampleText = {
  text: string;
  reward: number | null;
  /** Ended by the length limit; unknown for samples of a run. */
  cut: boolean | null;
};

/** Sampling of the completions of a set. */
export type Sampling = {
  /** Name or id of a model version; absent = the active policy. */
  model?: string | null;
  /** 0 to 2; 0 is greedy. Default 1. */
  temperature?: number | null;
  /** Over 0, to 1. Default 1. */
  top_p?: number | null;
  /** Default 0 (off); -1 is off too. */
  top_k?: number | null;
  /** 0 to 1. Default 0. */
  min_p?: number | null;
  /** Over 0, to 10. Default 1. */
  repetition_penalty?: number | null;
  /** -2 to 2. Default 0. */
  presence_penalty?: number | null;
  /** -2 to 2. Default 0. */
  frequency_penalty?: number | null;
  /** Token id (as text) → -100 to 100. */
  logit_bias?: Record<string, number> | null;
  /** A string or a list of strings; the text ends before the first of them. */
  stop?: any;
  /** Token ids that end the text; they are not part of it. */
  stop_token_ids?: number[] | null;
  /** Keep the stop string in the text. Default false. */
  include_stop_str_in_output?: boolean | null;
  /** Samples per prompt. Default 1. */
  n?: number | null;
  /** Drawn at random, and returned, when absent. */
  seed?: number | null;
  /** Server-sent events instead of one answer. */
  stream?: boolean | null;
  /** With `stream`. */
  stream_options?: StreamOptions | null;
  /** Do not stop at the end token. */
  ignore_eos?: boolean | null;
  /** No end before this many tokens. Default 0. */
  min_tokens?: number | null;
  /** Name or id of a soft prompt, put before the prompt. */
  prompt_adapter?: string | null;
  /** Accepted, without effect. */
  user?: any;
  /** The newer name of `user`. Accepted, without effect. */
  safety_identifier?: any;
  /** Accepted, without effect: prefixes are shared wherever they are equal. */
  prompt_cache_key?: any;
  /** Not supported, except `"in_memory"`. */
  prompt_cache_retention?: any;
  /** Not supported, except `false`. */
  store?: any;
  /** Accepted, without effect: it belongs to `store`. */
  metadata?: Record<string, any> | null;
  /** Not supported, except `"auto"` and `"default"`. */
  service_tier?: any;
  /** `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`: the
   * text is JSON of that schema, always enforced. `{"type": "text"}` has no effect. */
  response_format?: any;
  /** The text is JSON of this schema. (As vLLM.) */
  guided_json?: any;
  /** The text matches this regular expression as a whole. (As vLLM.) */
  guided_regex?: string | null;
  /** The text is one of these. (As vLLM.) */
  guided_choice?: string[] | null;
  /** As `grammar`. (As vLLM.) */
  guided_grammar?: string | null;
  /** One of `json`, `regex`, `choice`, `grammar`, `json_object`. (As newer vLLM.) */
  structured_outputs?: any;
  /** The text follows this grammar: GBNF (`root ::= …`) or Lark (`start: …`). (As llama.cpp.) */
  grammar?: string | null;
  /** As `guided_json`. (As llama.cpp.) */
  json_schema?: any;
  max_tokens?: number | null;
};

/** Scores of pairs of texts. */
export type Scored = {
  object: 'list';
  model: string;
  data: PairScore[];
  usage: TokenUsage;
  instructd: ScoredBy;
};

/** The version that scored. */
export type ScoredBy = {
  model_version: string;
};

/** A text that expresses a choice. */
export type ScoredWord = {
  text: string;
  logprob: number;
  logprob_per_token: number;
  tokens: number;
  /** Only with `logprobs`. */
  token_logprobs?: number[] | null;
};

export type Seconds = {
  low: number;
  high: number;
};

/** How a set's prompt and completions are chosen. */
export type SelectionPolicy = 'random' | 'uncertainty' | 'versus' | 'tournament' | 'stored' | 'disagreement' | 'judge';

/** Serving with the weights in one type; the cache is in 16 bits, or in 32 with f32 weights. */
export type ServePlan = {
  dtype: Dtype;
  weights_bytes: number;
  kv_bytes_per_token: number;
  /** `batch` sequences of `context` tokens, of which windowed layers keep their window. */
  kv_bytes: number;
  total_bytes: number;
  devices: number;
  /** Tokens per second of one device that holds it all: the weights and the cache read once per step … */
  bandwidth_bound: number;
  /** … and the arithmetic. */
  compute_bound: number;
  tokens_per_second: number;
};

/** Sets being drawn in the background from stored prompts. */
export type SetDraw = {
  id: string;
  /** The request's parameters. */
  request: any;
  state: DrawState;
  /** Numbers of sets to make, of prompts (or sets) examined, and of sets made. */
  wanted: number;
  looked_at: number;
  made: number;
  /** Counts of candidates and of those left out, by reason. */
  report: DrawReport;
  error: string | null;
  created: number;
  /** The last update; a running draw without updates for a long time has ended with its server. */
  updated: number;
};

/** One page of a list, newest first. */
export type SetDrawPage = {
  data: SetDraw[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

export type SetKind = 'normal' | 'gold' | 'calibration';

export type SetStatus = 'open' | 'done' | 'retired';

/** A set without its texts. */
export type SetSummary = {
  id: string;
  prompt_id: string;
  status: SetStatus;
  /** How many people should rank it. */
  overlap: number;
  /** In storage order. */
  completion_ids: string[];
  created: number;
};

/** One page of a list, newest first. */
export type SetSummaryPage = {
  data: SetSummary[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

/** A setting that was changed while the server ran. */
export type SettingChange = {
  name: string;
  value: any;
  updated: number;
  /** The labeler who changed it. */
  updated_by: string;
};

/** One setting for the page. */
export type SettingView = {
  name: string;
  about: string;
  /** Current value; of secrets only whether they are set. */
  value: any;
  default: any;
  /** Value from file, environment and command line. */
  configured: any;
  /** Can be changed while the server runs. */
  live: boolean;
  changed: SettingChange | null;
  /** Number of records that the setting affects, for settings that count them. */
  affects?: RequestCounts | null;
};

/** A whole list. */
export type SettingViewList = {
  data: SettingView[];
};

/** The stored judgment of a reviewer. */
export type Settled = {
  judgment: Judgment;
  /** Whether the idempotency key had been used before; then this is the earlier judgment. */
  replayed: boolean;
};

/** An argument of a tool call. */
export type ShownArgument = {
  /** Empty if the arguments are not an object. */
  name: string;
  /** A string as it is; other values as JSON. */
  value: string;
};

/** The current guidelines of one language. */
export type ShownGuidelines = {
  version: string;
  lang: string;
  /** When an administrator wrote them (µs UTC); null for the configured file and the built-in text. */
  since: number | null;
  html: string;
};

/** A message with its safe HTML. */
export type ShownMessage = {
  role: string;
  content: string;
  html: string;
  /** The parts of a message that is more than text, in order. */
  parts?: ShownPart[];
};

/** A part of a message or completion. */
export type ShownPart = {
  kind: 'text';
  text: string;
  html: string;
} | {
  kind: 'reasoning';
  text: string;
  html: string;
} | {
  kind: 'tool_call';
  name: string;
  arguments: ShownArgument[];
} | {
  kind: 'tool_result';
  text: string;
} | {
  kind: 'tools';
  tools: ShownTool[];
};

/** A prompt with rendered messages. */
export type ShownPrompt = {
  id: string;
  messages: ShownMessage[];
};

/** A set with its texts, without the authors. */
export type ShownSet = {
  id: string;
  prompt_id: string;
  prompt: ShownPrompt;
  status: SetStatus;
  /** How many people should rank it. */
  overlap: number;
  /** In storage order. */
  completions: BlindCompletion[];
  created: number;
};

/** A tool that the model may call. */
export type ShownTool = {
  name: string;
  description: string;
};

export type SideBySide = {
  /** Messages, or a raw prompt. */
  prompt: any;
  ours: SampleText;
  theirs: SampleText;
};

/** The ways to sign in beside links and keys. */
export type SignInOptions = {
  /** The OpenID Connect provider; null when none is configured. */
  oidc: ProviderOption | null;
};

/** The signed-in person. */
export type SignedIn = {
  labeler: Person;
  /** After an invite: the person's sign-in link, shown once. */
  link?: OwnLink | null;
};

/** A span of a completion that a labeler marked as wrong. Positions are in Unicode scalar values of the stored text. */
export type Span = {
  completion_id: string;
  /** Position of the first character, from 0. */
  start: number;
  /** Position behind the last character. */
  end: number;
  /** What is wrong there. */
  note: string | null;
};

/** A span of a completion that a labeler marked as wrong. Positions are in Unicode scalar values of the stored text. */
export type SpanInput = {
  completion_id: string;
  /** Position of the first character, from 0. */
  start: number;
  /** Position behind the last character. */
  end: number;
  /** What is wrong there. */
  note?: string | null;
};

/** The side of the train/held-out split that a prompt is on. Data is split by prompt, never by pair. */
export type Split = 'train' | 'heldout';

export type StopReason = 'end_turn' | 'max_tokens' | 'stop_sequence' | 'tool_use';

/** The stored judgment, and what is revealed to its labeler. */
export type StoredJudgment = {
  judgment: Judgment;
  /** Whether the idempotency key had been used before; then this is the earlier judgment. */
  replayed: boolean;
  /** Authors of the completions; empty unless `labeling.reveal` is on. */
  reveal: Author[];
  /** Comparison with the expected answer, for calibration sets; else null. */
  verdict: Verdict | null;
};

/** The stored ranking and its set. */
export type StoredRanking = {
  judgment: Judgment;
  /** Whether the idempotency key had been used before; then this is the earlier judgment. */
  replayed: boolean;
  /** Authors of the completions; empty unless `labeling.reveal` is on. */
  reveal: Author[];
  /** Comparison with the expected answer, for calibration sets; else null. */
  verdict: Verdict | null;
  set: RankedSetIds;
};

/** A version of a rubric, and who stored it. */
export type StoredRubric = {
  /** First 12 hex digits of the SHA-256 of the definition. */
  version: string;
  definition: RubricDefinition;
  /** µs UTC. */
  created: number;
  created_by: string;
};

export type StreamOptions = {
  /** A last chunk with the token counts. */
  include_usage?: boolean | null;
  /** Not supported, except `false`. */
  include_obfuscation?: boolean | null;
};

/** One event of the stream: `event` is its kind, or `error` when the stream ends early. */
export type StreamedJobEvent = {
  event: string;
  /** The event's `seq`; absent for errors. */
  id?: string | null;
  data: JobEventData;
};

/** How strongly the best is preferred; pairwise sets only. */
export type Strength = 'significantly' | 'clearly' | 'slightly' | 'barely';

export type TagCount = {
  tag: string;
  n: number;
};

export type TextChoice = {
  /** Samples of the first prompt come first. */
  index: number;
  /** After the prompt, with `echo`. */
  text: string;
  /** Only with `logprobs`. */
  logprobs: TextLogprobs | null;
  finish_reason: FinishReason | null;
};

/** Completions of the prompts. A chunk of a stream has one choice, whose text is appended; the last chunk has `usage`,
 * with `stream_options.include_usage`. */
export type TextCompletion = {
  id: string;
  object: 'text_completion';
  /** Seconds since 1970. */
  created: number;
  model: string;
  choices: TextChoice[];
  instructd: Generated;
  usage?: TokenUsage | null;
};

/** One event of a streamed generation. */
export type TextCompletionEvent = {
  /** `error` when the key or session of the stream has ended; else absent. */
  event?: string | null;
  data: TextCompletionEventData;
};

export type TextCompletionEventData = TextCompletion | Error | EndOfStream;

/** The tokens of a raw completion as parallel lists. Tokens that are partial characters are written as
 * `bytes:\xf0\x9f`. */
export type TextLogprobs = {
  tokens: string[];
  /** Null for the first token of a prompt, which has no distribution before it. */
  token_logprobs: (number | null)[];
  /** Every alternative and the token itself: if two have the same text, the token keeps it and the others are
   * `token_id:N`. */
  top_logprobs: (Record<string, number> | null)[];
  /** Offsets in characters of the choice's text; a character counts at its first byte. */
  text_offset: number[];
  token_ids: number[];
};

/** Judgments a day over the last `days` days (UTC, today included; empty days too), and the queue. */
export type Throughput = {
  days: DayCount[];
  median_active_ms: number | null;
  sets_open: number;
  /** Open sets that every active labeler has judged or skipped. */
  sets_stuck: number;
  /** Sets that are leased now. */
  leases: number;
};

export type Tier = {
  completion_id: string;
  /** 0 is best; equal tiers are a tie. */
  tier: number;
};

export type TokenEntry = {
  token: string;
  logprob: number | null;
  /** Bytes of the token, which may be partial characters. */
  bytes: number[];
  token_id: number;
};

/** Token counts of a request. */
export type TokenUsage = {
  /** Each prompt once. */
  prompt_tokens: number;
  /** Tokens of every sample. */
  completion_tokens: number;
  total_tokens: number;
};

/** The token ids of a text. */
export type Tokenized = {
  count: number;
  tokens: number[];
  max_model_len: number;
};

/** A version's place in a tournament. */
export type TournamentPlace = {
  name: string;
  /** Strength in Elo points, 0 in the middle. */
  elo: number;
  /** Comparisons with the others. */
  comparisons: number;
  /** Probability of being better than the next place; null for the last one. */
  better_than_next: number | null;
};

export type TrainPlan = {
  /** `full_f32`, `full_mixed`, `lora_bf16`, … */
  kind: string;
  trained_parameters: number;
  /** Weights, and where they are trained a master copy. */
  weights_bytes: number;
  gradients_bytes: number;
  /** Adam's two moments. */
  optimizer_bytes: number;
  /** An estimate: 34 bytes per token, channel and layer in 16 bits (arXiv 2205.05198, without the
   * attention maps, which fused kernels never write), twice that in f32. */
  activations_bytes: number;
  total_bytes: number;
  devices: number;
  tokens_per_second: number;
};

/** Completions of the versions, and feedback on them. */
export type Usage = {
  /** When this was counted (µs UTC). In a large database that is up to some minutes ago. */
  counted: number;
  /** Start of the period: the canary's start, else a day ago (µs UTC). */
  since: number;
  canary: Canary | null;
  versions: VersionUse[];
};

/** Numbers, or with `encoding_format: base64` their little-endian f32. */
export type Vector = number[] | string;

/** A judgment of a calibration set compared with the known answer. */
export type Verdict = {
  /** Share of the expected order's pairs ranked the same way, ties half; `null` when nothing was ranked. */
  met: number | null;
  expected: ExpectedTier[];
  explanation: string | null;
};

/** Agreement on the pairs that have a completion of one model version. */
export type VersionAgreement = {
  model_version_id: string;
  /** Sets that the judge and at least one person ranked. */
  shared_sets: number;
  /** Compared pairs of completions, once for each person. */
  pairs: number;
  /** Share of pairs on which judge and person say the same, ties included. */
  same: Figure | null;
  /** The same of the pairs on which both have a preference. */
  same_without_ties: Figure | null;
  /** Cohen's κ: 0 is the agreement of chance, 1 is complete. */
  kappa: Figure | null;
  /** κ with linear weights: a tie is half as far from a preference as the opposite is. */
  weighted_kappa: number | null;
};

/** Id and name of a version. */
export type VersionName = {
  id: string;
  name: string;
  kind: ModelKind;
  state: ModelState;
};

/** The table of versions by what people preferred, best first; `wins` is in the same order. */
export type VersionTable = {
  versions: Contestant[];
  wins: HeadToHead[][];
  tie_rate: number;
  /** Log-odds that a text one standard deviation longer gains, at most; only when length-controlled. */
  length_effect: Figure | null;
  length_controlled: boolean;
  comparisons: number;
  prompts: number;
  resampling: Resampling;
};

/** Completions of a model version, and feedback on them. */
export type VersionUse = {
  model_version_id: string;
  requests: number;
  completions: number;
  tokens: number;
  /** Ended by the length limit. */
  cut: number;
  /** Aborted by the client. */
  aborted: number;
  thumbs_up: number;
  thumbs_down: number;
};

/** An address that is told of events. */
export type Webhook = {
  id: string;
  url: string;
  events: WebhookEvent[];
  /** Events from before this time are not sent. */
  created: number;
};

/** One event for one webhook. */
export type WebhookDelivery = {
  /** The header `webhook-id` of every attempt. */
  id: string;
  webhook_id: string;
  event: WebhookEvent;
  /** The JSON text that is sent. */
  body: string;
  state: DeliveryState;
  attempts: number;
  /** When it is sent next; of an ended delivery, when the last attempt was due. */
  next_attempt: number;
  /** Status of the last response; `null` before the first one, and when the last attempt got none. */
  last_code: number | null;
  /** Why the last attempt failed. */
  last_error: string | null;
  created: number;
  /** When it was delivered or given up. */
  ended: number | null;
};

/** One page of a list, newest first. */
export type WebhookDeliveryPage = {
  data: WebhookDelivery[];
  /** Id of the last row: for `?after=` of the next page. Null when the page is empty. */
  after: string | null;
};

/** What a webhook is told of. */
export type WebhookEvent = 'judgment.created' | 'job.succeeded' | 'job.failed' | 'model.promoted' | 'queue.empty' | 'gold.drift' | 'webhook.test';

/** A whole list. */
export type WebhookList = {
  data: Webhook[];
};

/** What stands in the place of an answer or body where the API has no such route. */
export interface NoSuchRoute<P extends string> {
  'the API has no such route': P;
}

/** What GET answers. */
export type GetAnswer<P extends string> = string extends P ? any :
  P extends '/admin/api/quality/consensus' ? ConsensusList :
  P extends '/admin/api/quality/versions' ? VersionTable :
  P extends '/admin/api/quality/ratings' ? RatingsReport :
  P extends '/admin/api/quality/judges' ? JudgesReport :
  P extends '/admin/webhook-deliveries' ? WebhookDeliveryPage :
  P extends '/v1/label/conversations' ? ListedConversationPage :
  P extends '/admin/api/throughput' ? Throughput :
  P extends '/admin/api/judgments' ? ListedJudgmentSearchPage :
  P extends '/admin/api/overview' ? Overview :
  P extends '/v1/comparison-sets' ? SetSummaryPage :
  P extends '/admin/api/quality' ? QualityReport :
  P extends '/admin/guidelines' ? AllGuidelines :
  P extends '/admin/sets/draws' ? SetDrawPage :
  P extends '/v1/label/history' ? PastJudgmentPage :
  P extends '/admin/catalogue' ? Catalogue :
  P extends '/admin/retention' ? Retention :
  P extends '/session/options' ? SignInOptions :
  P extends '/admin/datasets' ? DatasetVersionList :
  P extends '/admin/labelers' ? LabelerWithLinkList :
  P extends '/admin/projects' ? CountedProjectList :
  P extends '/admin/settings' ? SettingViewList :
  P extends '/admin/webhooks' ? WebhookList :
  P extends '/admin/invites' ? InviteViewList :
  P extends '/admin/recipes' ? RecipeViewList :
  P extends '/admin/rubrics' ? AllRubrics :
  P extends '/v1/guidelines' ? ShownGuidelines :
  P extends '/v1/label/keys' ? ChangedKeys :
  P extends '/v1/label/next' ? LeasedSet | null :
  P extends '/admin/models' ? ModelVersions :
  P extends '/openapi.json' ? OpenApiDocument :
  P extends '/v1/judgments' ? JudgmentPage :
  P extends '/admin/audit' ? AuditPage :
  P extends '/admin/usage' ? Usage :
  P extends '/v1/label/me' ? OwnPage :
  P extends '/v1/projects' ? ProjectList :
  P extends '/admin/jobs' ? JobViewSearchPage :
  P extends '/admin/keys' ? KeyViewList :
  P extends '/admin/sets' ? ListedSetSearchPage :
  P extends '/v1/batches' ? BatchListing :
  P extends '/v1/prompts' ? PromptPage :
  P extends '/v1/models' ? ModelList :
  P extends '/v1/rubric' ? ActiveRubric :
  P extends '/v1/files' ? FileListing :
  P extends '/session' ? SignedIn :
  P extends '/v1/plan' ? PlanAnswer :
  P extends '/health' ? Health :
  P extends '/ready' ? Ready :
  P extends `/admin/projects/${string}/members` ? ProjectMemberList :
  P extends `/v1/label/conversations/${string}` ? Conversation :
  P extends `/admin/models/${string}/evidence` ? Evidence :
  P extends `/admin/labelers/${string}/data` ? PersonalExport :
  P extends `/v1/review/sets/${string}/runs` ? LearnedRunList :
  P extends `/admin/jobs/${string}/metrics` ? Curves :
  P extends `/v1/comparison-sets/${string}` ? ShownSet :
  P extends `/v1/label/judgments/${string}` ? ReopenedJudgment :
  P extends `/admin/jobs/${string}/events` ? JobEvents :
  P extends `/admin/sets/draws/${string}` ? SetDraw :
  P extends `/admin/datasets/${string}` ? DatasetVersion :
  P extends `/admin/jobs/${string}/log` ? PlaceLog :
  P extends `/v1/review/sets/${string}` ? ReviewedSet :
  P extends `/admin/models/${string}` ? ModelVersion :
  P extends `/v1/responses/${string}` ? Response :
  P extends `/admin/jobs/${string}` ? JobView :
  P extends `/v1/batches/${string}` ? Batch :
  P extends `/v1/models/${string}` ? ModelEntry :
  P extends `/v1/files/${string}` ? File :
  NoSuchRoute<P>;

/** What POST answers. */
export type PostAnswer<P extends string> = string extends P ? any :
  P extends '/v1/messages/count_tokens' ? CountedTokens :
  P extends '/admin/models/rollback' ? ModelVersion :
  P extends '/admin/rubrics/active' ? ActiveRubric :
  P extends '/admin/jobs/estimate' ? Estimate :
  P extends '/v1/chat/completions' ? ChatCompletion :
  P extends '/v1/comparison-sets' ? ShownSet :
  P extends '/admin/sample-data' ? SampleReport :
  P extends '/admin/sets/retire' ? null :
  P extends '/v1/demonstrations' ? Demonstration :
  P extends '/admin/guidelines' ? ShownGuidelines :
  P extends '/admin/retention' ? RetentionProgress :
  P extends '/admin/sets/draw' ? SetDraw :
  P extends '/admin/datasets' ? DatasetVersion :
  P extends '/admin/labelers' ? CreatedLabeler :
  P extends '/admin/projects' ? Project :
  P extends '/admin/settings' ? null :
  P extends '/admin/webhooks' ? CreatedWebhook :
  P extends '/session/invite' ? InviteGreeting :
  P extends '/v1/comparisons' ? StoredRanking :
  P extends '/v1/completions' ? TextCompletion :
  P extends '/admin/invites' ? CreatedInvite :
  P extends '/admin/rubrics' ? StoredRubric :
  P extends '/v1/embeddings' ? EmbeddingList :
  P extends '/v1/label/keys' ? ChangedKeys :
  P extends '/admin/canary' ? Canary :
  P extends '/admin/import' ? ImportReport :
  P extends '/v1/attention' ? AttentionMaps :
  P extends '/v1/fill-mask' ? FilledGaps :
  P extends '/v1/responses' ? Response :
  P extends '/v1/feedback' ? FeedbackEvent :
  P extends '/v1/messages' ? AnthropicMessage :
  P extends '/admin/jobs' ? JobView :
  P extends '/admin/keys' ? CreatedKey :
  P extends '/detokenize' ? Detokenized :
  P extends '/v1/batches' ? Batch :
  P extends '/v1/choices' ? RankedChoices :
  P extends '/v1/prompts' ? Prompt :
  P extends '/v1/rewards' ? Rewards :
  P extends '/v1/rerank' ? Reranked :
  P extends '/tokenize' ? Tokenized :
  P extends '/v1/files' ? File :
  P extends '/v1/score' ? Scored :
  P extends '/session' ? SignedIn :
  P extends `/admin/webhook-deliveries/${string}/resend` ? WebhookDelivery :
  P extends `/admin/sets/draws/${string}/cancel` ? SetDraw :
  P extends `/admin/sets/${string}/known-answer` ? null :
  P extends `/admin/projects/${string}/members` ? ProjectMember :
  P extends `/admin/labelers/${string}/active` ? null :
  P extends `/v1/review/sets/${string}/settle` ? Settled :
  P extends `/admin/labelers/${string}/erase` ? Erasure :
  P extends `/admin/models/${string}/promote` ? ModelVersion :
  P extends `/admin/labelers/${string}/link` ? CreatedLink :
  P extends `/admin/webhooks/${string}/test` ? WebhookDelivery :
  P extends `/admin/jobs/${string}/cancel` ? Job :
  P extends `/admin/jobs/${string}/resume` ? Job :
  P extends `/admin/sets/${string}/retire` ? null :
  P extends `/v1/batches/${string}/cancel` ? Batch :
  P extends `/v1/label/${string}/judgment` ? StoredJudgment :
  P extends `/v1/label/${string}/release` ? null :
  P extends `/admin/labelers/${string}` ? Labeler :
  P extends `/admin/projects/${string}` ? Project :
  P extends `/v1/label/${string}/renew` ? Renewed :
  P extends `/admin/jobs/${string}` ? JobView :
  NoSuchRoute<P>;

/** What DELETE answers. */
export type DeleteAnswer<P extends string> = string extends P ? any :
  P extends '/admin/canary' ? null :
  P extends '/session' ? null :
  P extends `/admin/labelers/${string}/link` ? null :
  P extends `/admin/webhooks/${string}` ? null :
  P extends `/admin/invites/${string}` ? null :
  P extends `/admin/models/${string}` ? null :
  P extends `/v1/responses/${string}` ? Forgotten :
  P extends `/admin/keys/${string}` ? null :
  P extends `/v1/files/${string}` ? DeletedFile :
  P extends `/admin/projects/${string}/members/${string}` ? null :
  NoSuchRoute<P>;

/** What POST sends. */
export type PostBody<P extends string> = string extends P ? any :
  P extends '/v1/messages/count_tokens' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** Turns of `user` and `assistant`, of a text or of blocks: `text`, `tool_use`, `tool_result`, `thinking`. */
    messages: any[];
    /** A text, or a list of text blocks. */
    system?: any;
    /** Most tokens to generate. Required, except for counting. */
    max_tokens?: number | null;
    /** The text ends before the first of them. */
    stop_sequences?: string[] | null;
    /** Server-sent events instead of one response. */
    stream?: boolean | null;
    /** 0 to 2; 0 is greedy. Default 1. */
    temperature?: number | null;
    /** Over 0, to 1. Default 1. */
    top_p?: number | null;
    /** Default 0 (off). */
    top_k?: number | null;
    /** `{name, description, input_schema}` each. The server has no tools of its own. */
    tools?: any[] | null;
    /** `{"type": "auto"}`, `any`, `none`, or `{"type": "tool", "name"}`; with `disable_parallel_tool_use`. */
    tool_choice?: any;
    /** `{"type": "enabled"}`, `adaptive` or `disabled`, for templates that read `enable_thinking`. The length of the
     * thoughts has no limit of its own: `budget_tokens` is accepted, without effect. */
    thinking?: any;
    /** Accepted, without effect. */
    metadata?: any;
    /** Not supported, except `auto` and `standard_only`. */
    service_tier?: string | null;
  } :
  P extends '/admin/models/rollback' ? {
    /** Default `policy`. */
    kind?: ModelKind | null;
  } :
  P extends '/admin/rubrics/active' ? {
    /** Null or absent: no rubric. */
    version?: string | null;
    /** Id or name of the project; the first when absent. */
    project?: string | null;
  } :
  P extends '/admin/jobs/estimate' ? {
    /** A recipe's name. */
    kind: string;
    /** The job's arguments, as for `POST /admin/jobs`. */
    args?: Record<string, any>;
  } :
  P extends '/v1/chat/completions' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** 0 to 2; 0 is greedy. Default 1. */
    temperature?: number | null;
    /** Over 0, to 1. Default 1. */
    top_p?: number | null;
    /** Default 0 (off); -1 is off too. */
    top_k?: number | null;
    /** 0 to 1. Default 0. */
    min_p?: number | null;
    /** Over 0, to 10. Default 1. */
    repetition_penalty?: number | null;
    /** -2 to 2. Default 0. */
    presence_penalty?: number | null;
    /** -2 to 2. Default 0. */
    frequency_penalty?: number | null;
    /** Token id (as text) → -100 to 100. */
    logit_bias?: Record<string, number> | null;
    /** A string or a list of strings; the text ends before the first of them. */
    stop?: any;
    /** Token ids that end the text; they are not part of it. */
    stop_token_ids?: number[] | null;
    /** Keep the stop string in the text. Default false. */
    include_stop_str_in_output?: boolean | null;
    /** Samples per prompt. Default 1. */
    n?: number | null;
    /** Drawn at random, and returned, when absent. */
    seed?: number | null;
    /** Server-sent events instead of one answer. */
    stream?: boolean | null;
    /** With `stream`. */
    stream_options?: StreamOptions | null;
    /** Do not stop at the end token. */
    ignore_eos?: boolean | null;
    /** No end before this many tokens. Default 0. */
    min_tokens?: number | null;
    /** Name or id of a soft prompt, put before the prompt. */
    prompt_adapter?: string | null;
    /** Accepted, without effect. */
    user?: any;
    /** The newer name of `user`. Accepted, without effect. */
    safety_identifier?: any;
    /** Accepted, without effect: prefixes are shared wherever they are equal. */
    prompt_cache_key?: any;
    /** Not supported, except `"in_memory"`. */
    prompt_cache_retention?: any;
    /** Not supported, except `false`. */
    store?: any;
    /** Accepted, without effect: it belongs to `store`. */
    metadata?: Record<string, any> | null;
    /** Not supported, except `"auto"` and `"default"`. */
    service_tier?: any;
    /** `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`: the
     * text is JSON of that schema, always enforced. `{"type": "text"}` has no effect. */
    response_format?: any;
    /** The text is JSON of this schema. (As vLLM.) */
    guided_json?: any;
    /** The text matches this regular expression as a whole. (As vLLM.) */
    guided_regex?: string | null;
    /** The text is one of these. (As vLLM.) */
    guided_choice?: string[] | null;
    /** As `grammar`. (As vLLM.) */
    guided_grammar?: string | null;
    /** One of `json`, `regex`, `choice`, `grammar`, `json_object`. (As newer vLLM.) */
    structured_outputs?: any;
    /** The text follows this grammar: GBNF (`root ::= …`) or Lark (`start: …`). (As llama.cpp.) */
    grammar?: string | null;
    /** As `guided_json`. (As llama.cpp.) */
    json_schema?: any;
    /** The conversation so far. Required. */
    messages: ChatMessage[];
    /** Most tokens to generate; by default the rest of the context, limited by the server. */
    max_tokens?: number | null;
    /** The newer name of `max_tokens`. */
    max_completion_tokens?: number | null;
    /** Report log-probs. */
    logprobs?: boolean | null;
    /** 0 to 20 alternatives per token; with `logprobs`. */
    top_logprobs?: number | null;
    /** Add the begin token that the model expects before the rendered conversation. Default false, because
     * templates contain their own. */
    add_special_tokens?: boolean | null;
    /** Functions that the model may call: `{"type": "function", "function": {name, description, parameters,
     * strict}}`. */
    tools?: any;
    /** `"none"`, `"auto"` (the default), `"required"`, or `{"type": "function", "function": {"name"}}`. The last two
     * are enforced, with the schemas of the arguments. */
    tool_choice?: any;
    /** Whether an enforced answer may contain several calls. Default true. */
    parallel_tool_calls?: boolean | null;
    /** Variables for the chat template, such as `{"enable_thinking": false}`. A variable that the template does
     * not read is refused. */
    chat_template_kwargs?: any;
    /** `none`, `minimal`, `low`, `medium`, `high` or `xhigh`, for templates that read `reasoning_effort` or
     * `enable_thinking`. */
    reasoning_effort?: string | null;
    /** Not supported, except empty. */
    functions?: any;
    /** Not supported, except `"none"` and `"auto"`. */
    function_call?: any;
    /** Not supported. */
    audio?: any;
    /** Not supported, except `["text"]`. */
    modalities?: any;
    /** Not supported. */
    prediction?: any;
    /** Not supported, except `"medium"`. */
    verbosity?: any;
    /** Not supported. */
    web_search_options?: any;
  } :
  P extends '/v1/comparison-sets' ? {
    messages?: ChatMessage[] | null;
    prompt_id?: string | null;
    /** Texts, `{"text"}` or `{"completion_id"}`; absent = generated by the active policy. */
    completions?: any[] | null;
    /** Number of completions to generate, 2 to 9. */
    n?: number | null;
    /** Sampling parameters. */
    sampling?: Sampling | null;
    /** How many people should rank it. */
    overlap?: number | null;
    /** Id or name of the project of `messages`; the first when absent. A set of `prompt_id` is in the prompt's project. */
    project?: string | null;
  } :
  P extends '/admin/sets/retire' ? {
    /** 1 to 500 sets. */
    ids: string[];
  } :
  P extends '/v1/demonstrations' ? {
    messages: ChatMessage[];
    /** The ideal answer. */
    completion: string;
    /** Id or name of the project; the first when absent. */
    project?: string | null;
  } :
  P extends '/v1/label/continue' ? {
    /** The set of the last answers, which the caller has judged. */
    set_id: string;
    /** The answer to go on with: one of the best of a ranking, any one after another outcome. */
    completion_id: string;
    /** The message. */
    content: string;
    /** Number of answers of the active version, 2 to 9. */
    n?: number | null;
    /** Or: names of versions that answer once each. The authors stay hidden until the ranking. */
    models?: string[];
    /** Sampling parameters. */
    sampling?: Sampling | null;
  } :
  P extends '/admin/guidelines' ? {
    /** `en` or `zh`. */
    lang: string;
    /** Markdown; empty = back to the text of the first project, the configured file or the built-in text. */
    text: string;
    /** Id or name of the project; the first when absent. */
    project?: string | null;
  } :
  P extends '/admin/sets/draw' ? {
    policy: SelectionPolicy;
    /** Sets to make, 1 to 10000. */
    count: number;
    /** Completions a set, 2 to 9; as configured when absent. Even for `versus`. */
    n?: number | null;
    /** How many people should rank each set. */
    overlap?: number | null;
    /** Which stored prompts to draw for; of the first project when it names none. `disagreement` and `judge` choose among
     * sets and use only its project, all projects when it names none. */
    prompts?: PromptFilter;
    /** The policies (names or ids): two for `versus`, 2 to 8 for `tournament`. */
    versions?: string[] | null;
    /** For `tournament`: the probability of the whole order at which it ends, 0.5 to 0.999; 0.95 when absent. */
    certainty?: number | null;
    /** For `uncertainty`: prompts answered and scored for each set made, 1 to 64; 4 when absent. */
    candidates?: number | null;
    /** Longest answer, in tokens; as configured (`labeling.max_tokens`) when absent. */
    max_tokens?: number | null;
    /** 0 to 2; as configured (`labeling.temperature`) when absent. */
    temperature?: number | null;
    /** Above 0 and at most 1; as configured (`labeling.top_p`) when absent. */
    top_p?: number | null;
    /** Seed of the choice of prompts and of the samples; random when absent. */
    seed?: number | null;
  } :
  P extends '/admin/datasets' ? {
    /** Unique, `[a-z0-9._-]{1,64}`. */
    name?: string | null;
    /** Which rankings; all of normal sets when absent. `feedback: true` adds preferences that follow from
     * applications' events: an edit over the text it was made from, thumbs averaged over users, scores
     * compared within one user. */
    filter?: RankedFilter;
  } :
  P extends '/admin/labelers' ? {
    name: string;
    /** Default `labeler`. */
    role?: Role | null;
    /** Whether this is another person than the existing one of this name. */
    another?: boolean;
  } :
  P extends '/admin/projects' ? {
    /** Unique; 1 to 100 bytes. */
    name: string;
  } :
  P extends '/admin/settings' ? {
    /** `section.key`, one of those with `"live": true`. */
    name: string;
    /** `null` = the value of file and environment. */
    value: any;
  } :
  P extends '/admin/webhooks' ? {
    /** `https://…` at a public address, or a URL of a host in `webhooks.hosts`. */
    url: string;
    /** What it is told of. */
    events: WebhookEvent[];
  } :
  P extends '/session/invite' ? {
    invite: string;
  } :
  P extends '/v1/comparisons' ? {
    messages?: ChatMessage[] | null;
    prompt_id?: string | null;
    /** Or: a set that exists. */
    set_id?: string | null;
    /** `{"text" | "completion_id", "tier"}`, each completion once; tier 0 is best, equal tiers are a tie. */
    completions: any[];
    outcome?: Outcome | null;
    strength?: Strength | null;
    rationale?: string | null;
    /** A name for this ranking, 1 to 200 bytes: sent again under it, the ranking is stored once. Another ranking under it
     * is refused (`idempotency_key_reused`). Without one, every request is a ranking of its own. */
    idempotency_key?: string | null;
    /** Id or name of the project of `messages`; the first when absent. */
    project?: string | null;
  } :
  P extends '/v1/completions' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** 0 to 2; 0 is greedy. Default 1. */
    temperature?: number | null;
    /** Over 0, to 1. Default 1. */
    top_p?: number | null;
    /** Default 0 (off); -1 is off too. */
    top_k?: number | null;
    /** 0 to 1. Default 0. */
    min_p?: number | null;
    /** Over 0, to 10. Default 1. */
    repetition_penalty?: number | null;
    /** -2 to 2. Default 0. */
    presence_penalty?: number | null;
    /** -2 to 2. Default 0. */
    frequency_penalty?: number | null;
    /** Token id (as text) → -100 to 100. */
    logit_bias?: Record<string, number> | null;
    /** A string or a list of strings; the text ends before the first of them. */
    stop?: any;
    /** Token ids that end the text; they are not part of it. */
    stop_token_ids?: number[] | null;
    /** Keep the stop string in the text. Default false. */
    include_stop_str_in_output?: boolean | null;
    /** Samples per prompt. Default 1. */
    n?: number | null;
    /** Drawn at random, and returned, when absent. */
    seed?: number | null;
    /** Server-sent events instead of one answer. */
    stream?: boolean | null;
    /** With `stream`. */
    stream_options?: StreamOptions | null;
    /** Do not stop at the end token. */
    ignore_eos?: boolean | null;
    /** No end before this many tokens. Default 0. */
    min_tokens?: number | null;
    /** Name or id of a soft prompt, put before the prompt. */
    prompt_adapter?: string | null;
    /** Accepted, without effect. */
    user?: any;
    /** The newer name of `user`. Accepted, without effect. */
    safety_identifier?: any;
    /** Accepted, without effect: prefixes are shared wherever they are equal. */
    prompt_cache_key?: any;
    /** Not supported, except `"in_memory"`. */
    prompt_cache_retention?: any;
    /** Not supported, except `false`. */
    store?: any;
    /** Accepted, without effect: it belongs to `store`. */
    metadata?: Record<string, any> | null;
    /** Not supported, except `"auto"` and `"default"`. */
    service_tier?: any;
    /** `{"type": "json_object"}` or `{"type": "json_schema", "json_schema": {"name", "schema", "strict"}}`: the
     * text is JSON of that schema, always enforced. `{"type": "text"}` has no effect. */
    response_format?: any;
    /** The text is JSON of this schema. (As vLLM.) */
    guided_json?: any;
    /** The text matches this regular expression as a whole. (As vLLM.) */
    guided_regex?: string | null;
    /** The text is one of these. (As vLLM.) */
    guided_choice?: string[] | null;
    /** As `grammar`. (As vLLM.) */
    guided_grammar?: string | null;
    /** One of `json`, `regex`, `choice`, `grammar`, `json_object`. (As newer vLLM.) */
    structured_outputs?: any;
    /** The text follows this grammar: GBNF (`root ::= …`) or Lark (`start: …`). (As llama.cpp.) */
    grammar?: string | null;
    /** As `guided_json`. (As llama.cpp.) */
    json_schema?: any;
    /** A string, a list of strings, a list of token ids, or a list of such lists. Required. */
    prompt: any;
    /** Most tokens to generate. Default 16; 0 only with `echo`. */
    max_tokens?: number | null;
    /** Generate this many samples and return the `n` with the highest log-probability per token. */
    best_of?: number | null;
    /** 0 to 20: log-probs of each token, with this many alternatives. */
    logprobs?: number | null;
    /** Return the prompt before the completion. */
    echo?: boolean | null;
    /** Add the begin token that the model expects. Default true. For text, not ids. */
    add_special_tokens?: boolean | null;
    /** Read special tokens written in the prompt, such as `<|im_start|>`, as those tokens and not as text.
     * Default false. For prompts that the client has rendered itself; never for untrusted text. */
    parse_special?: boolean | null;
    /** The text after a gap that the completion fills, for models with tokens for that. */
    suffix?: string | null;
    /** Not supported, except empty. */
    tools?: any;
  } :
  P extends '/admin/invites' ? {
    /** Default `labeler`. */
    role?: Role | null;
    /** Name of the invited person, shown on the page. */
    name?: string | null;
    note?: string | null;
  } :
  P extends '/admin/rubrics' ? {
    definition: RubricDefinitionInput;
    /** Also activate it. Default false. */
    activate?: boolean;
    /** Id or name of the project in which it becomes active; the first when absent. */
    project?: string | null;
  } :
  P extends '/v1/embeddings' ? {
    /** Name or id of an encoder; absent = the configured one. */
    model?: string | null;
    /** A text, a list of up to 2048 texts, a list of token ids, or a list of such lists; 300,000 tokens together. */
    input: any;
    /** `float` (default) or `base64` (little-endian f32). */
    encoding_format?: string | null;
    /** Must be the encoder's own width: its vectors cannot be truncated. */
    dimensions?: number | null;
    /** Pooling of token vectors: `mean`, `cls`, `max`, `mean_sqrt_len`, `weighted_mean` or `last_token`.
     * Default: the pooling in the encoder's directory (modules.json), else `mean`. */
    pooling?: Pooling | null;
    /** Vectors of length 1. Default true. */
    normalize?: boolean | null;
    /** Cut texts that are too long instead of refusing them. Default false. */
    truncate?: boolean | null;
    /** Accepted, without effect. */
    user?: any;
    /** The newer name of `user`. Accepted, without effect. */
    safety_identifier?: any;
  } :
  P extends '/v1/label/keys' ? {
    /** Keys by action, each a letter from a to z, `=` or `?`; empty = the page's own keys. */
    keys: Record<string, string>;
  } :
  P extends '/admin/canary' ? {
    /** A candidate policy, by name or id. */
    model: string;
    /** Share of the requests that name no model, above 0 and at most 1. */
    share: number;
  } :
  P extends '/v1/attention' ? {
    /** A policy's or an encoder's name or id, or `policy` or `encoder`: the active one. Default: `policy`. */
    model?: string | null;
    text: string;
    /** Layers, counted from 0. Default: all, as far as the response may hold them. */
    layers?: number[] | null;
  } :
  P extends '/v1/fill-mask' ? {
    /** Name or id of an encoder; absent = the configured one. */
    model?: string | null;
    /** A text with gaps: the encoder's mask token (`[MASK]`), or three or more underscores. */
    text?: string | null;
    /** Token ids, read as they are. */
    tokens?: number[] | null;
    /** Positions of `tokens` to fill. */
    positions?: number[] | null;
    /** Segments of `tokens`. Default: all 0. */
    token_type_ids?: number[] | null;
    /** Most likely tokens per gap, 1 to 1000. Default 5. */
    top_k?: number | null;
    /** Words of one token each, whose probabilities are returned too. */
    targets?: string[] | null;
    /** Label → words of one token each: returns the label whose words are most likely in the single gap. */
    verbalizers?: Record<string, string[]> | null;
  } :
  P extends '/v1/label/ask' ? {
    messages: ChatMessage[];
    /** Number of answers of the active version, 2 to 9. */
    n?: number | null;
    /** Or: names of versions that answer once each. The authors stay hidden until the ranking. */
    models?: string[];
    /** Sampling parameters. */
    sampling?: Sampling | null;
    /** Id or name of a project in which the caller labels; their first when absent. */
    project?: string | null;
  } :
  P extends '/v1/responses' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** A text, or a list of items: messages, `function_call`, `function_call_output`, `reasoning`. Required. */
    input: any;
    /** A system message before the conversation; later requests do not inherit it. */
    instructions?: string | null;
    /** Continues the stored response with this id. */
    previous_response_id?: string | null;
    /** Store the response for 30 days, or as long as requests are stored, so that a later request can continue it.
     * Default: whether the server stores completions. */
    store?: boolean | null;
    /** Server-sent events instead of one answer. */
    stream?: boolean | null;
    /** Most tokens to generate. */
    max_output_tokens?: number | null;
    /** 0 to 2; 0 is greedy. Default 1. */
    temperature?: number | null;
    /** Over 0, to 1. Default 1. */
    top_p?: number | null;
    /** `{"type": "function", name, description, parameters, strict}` each. The server has no tools of its own. */
    tools?: any[] | null;
    /** `"none"`, `"auto"`, `"required"` or `{"type": "function", "name"}`. */
    tool_choice?: any;
    /** Whether an enforced answer may contain several calls. Default true. */
    parallel_tool_calls?: boolean | null;
    /** `{"format": {"type": "text" | "json_object" | "json_schema", name, schema, strict}}`. */
    text?: any;
    /** `{"effort"}`, for templates that use it. */
    reasoning?: any;
    /** Returned unchanged. */
    metadata?: any;
    /** Not supported, except `"disabled"`. */
    truncation?: any;
    /** Not supported, except empty and `["reasoning.encrypted_content"]`, which is without effect. */
    include?: any;
    /** Not supported, except `false`. */
    background?: any;
    /** Not supported, except 0. */
    top_logprobs?: any;
    /** Not supported, except `"auto"` and `"default"`. */
    service_tier?: any;
    /** Not supported, except `{"include_obfuscation": false}`. */
    stream_options?: any;
    /** Accepted, without effect. */
    user?: any;
    /** Accepted, without effect. */
    safety_identifier?: any;
    /** Accepted, without effect: prefixes are shared wherever they are equal. */
    prompt_cache_key?: any;
  } :
  P extends '/v1/feedback' ? {
    completion_id: string;
    /** `thumb` ("up" or "down"), `score` (a number), `edit` or `comment` (text). */
    kind: string;
    value: any;
    /** A name for this event, 1 to 200 bytes: sent again under it, the event is stored once. Another event under it is
     * refused (`idempotency_key_reused`). */
    idempotency_key?: string | null;
  } :
  P extends '/v1/messages' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** Turns of `user` and `assistant`, of a text or of blocks: `text`, `tool_use`, `tool_result`, `thinking`. */
    messages: any[];
    /** A text, or a list of text blocks. */
    system?: any;
    /** Most tokens to generate. Required, except for counting. */
    max_tokens: number | null;
    /** The text ends before the first of them. */
    stop_sequences?: string[] | null;
    /** Server-sent events instead of one response. */
    stream?: boolean | null;
    /** 0 to 2; 0 is greedy. Default 1. */
    temperature?: number | null;
    /** Over 0, to 1. Default 1. */
    top_p?: number | null;
    /** Default 0 (off). */
    top_k?: number | null;
    /** `{name, description, input_schema}` each. The server has no tools of its own. */
    tools?: any[] | null;
    /** `{"type": "auto"}`, `any`, `none`, or `{"type": "tool", "name"}`; with `disable_parallel_tool_use`. */
    tool_choice?: any;
    /** `{"type": "enabled"}`, `adaptive` or `disabled`, for templates that read `enable_thinking`. The length of the
     * thoughts has no limit of its own: `budget_tokens` is accepted, without effect. */
    thinking?: any;
    /** Accepted, without effect. */
    metadata?: any;
    /** Not supported, except `auto` and `standard_only`. */
    service_tier?: string | null;
  } :
  P extends '/admin/jobs' ? {
    /** A recipe's name: `sft`, `reward`, `ppo`, … */
    kind: string;
    /** The recipe's arguments; models by name. See `GET /admin/recipes`. */
    args?: Record<string, any>;
    /** At most one unfinished job has this key. */
    unique_key?: string | null;
    /** Higher runs first. Default 0. */
    priority?: number;
    /** Name of the job on the pages; at most 120 characters. */
    name?: string | null;
    /** Note on the purpose of the job; at most 4000 characters. */
    note?: string | null;
    /** At most 20, of at most 40 characters each. */
    tags?: string[] | null;
  } :
  P extends '/admin/keys' ? {
    name: string;
    /** Of `admin`, `feedback`, `inference`. */
    scopes: string[];
    /** The labeler of the key's judgments; a new one when absent. */
    labeler_id?: string | null;
    /** Prompt and generated tokens a day (UTC); absent = no limit. */
    daily_tokens?: number | null;
  } :
  P extends '/detokenize' ? {
    model?: string | null;
    tokens: number[];
  } :
  P extends '/v1/batches' ? {
    /** A file of purpose `batch`: one request on each line, `{"custom_id", "method": "POST", "url", "body"}`. */
    input_file_id: string;
    /** The `url` of every line: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings` or `/v1/responses`. */
    endpoint: string;
    /** `24h`: requests that are not answered by then are listed as errors. */
    completion_window: string;
    /** Up to 16 texts by name, returned unchanged. */
    metadata?: any;
    /** Not supported: files are kept as long as the server's setting says. */
    output_expires_after?: any;
  } :
  P extends '/v1/choices' ? {
    /** Name or id of a model version; absent = the active policy. */
    model?: string | null;
    /** A text, or token ids. A run of three or more underscores in a text is a blank: the whole text is then
     * scored with each choice in it. Else choices follow the prompt. */
    prompt?: any;
    /** A conversation; choices are the assistant's next message. */
    messages?: ChatMessage[] | null;
    /** A pattern with `{input}` and `{label}`, such as "Review: {input}\nSentiment: {label}". */
    template?: string | null;
    /** The text for `{input}`. */
    input?: string | null;
    /** Text before everything else; with `template`. */
    instruction?: string | null;
    /** Few-shot examples; with `template` or `messages`. */
    examples?: ChoiceExample[];
    /** Text between examples. Default: an empty line. */
    separator?: string | null;
    /** The answers to choose from. */
    choices?: string[] | null;
    /** Instead of `choices`: label → the words that express it; their probabilities are added. */
    verbalizers?: Record<string, string[]> | null;
    /** `none` (default: the sum of log-probs), `tokens` or `bytes` (their mean). */
    normalize?: Normalize;
    /** Subtract each choice's score in a content-free prompt. */
    calibrate?: boolean | null;
    /** Content-free texts: inputs for `template`, last user messages for `messages`, whole prompts for `prompt` (the
     * text before the blank, if it has one). Averaged. Default: "N/A", `[MASK]` and, with
     * `template`, "". */
    content_free?: string[] | null;
    /** Name or id of a soft prompt, put before the prompt. */
    prompt_adapter?: string | null;
    /** Also return the log-prob of every scored token. */
    logprobs?: boolean | null;
    /** Add the begin token that the model expects. Default true. With `prompt` and `template`. */
    add_special_tokens?: boolean | null;
    /** Read special tokens written in the text as those tokens, the choices included. Default false. */
    parse_special?: boolean | null;
    /** Accepted, without effect. */
    user?: any;
    /** The newer name of `user`. Accepted, without effect. */
    safety_identifier?: any;
  } :
  P extends '/v1/prompts' ? {
    messages?: ChatMessage[] | null;
    /** Or: raw text. */
    prompt?: string | null;
    tags?: string[];
    lang?: string | null;
    /** Id or name of the project; the first when absent. */
    project?: string | null;
  } :
  P extends '/v1/rewards' ? {
    /** A reward model's name or id; absent = the active one. */
    model?: string | null;
    /** A list of messages, or a text. */
    prompt: any;
    completions: string[];
  } :
  P extends '/v1/rerank' ? {
    /** Name or id of an encoder or a reward model; absent = the configured encoder. */
    model?: string | null;
    query: string;
    /** Texts, or `{"text"}`: up to 2047. */
    documents: any[];
    /** Number of returned documents; absent = all. */
    top_n?: number | null;
    /** Return the texts too. Default false. */
    return_documents?: boolean | null;
    /** Accepted, without effect. */
    user?: any;
  } :
  P extends '/tokenize' ? {
    model?: string | null;
    prompt?: string | null;
    /** Another name of `prompt`. */
    content?: string | null;
    /** A conversation, as in a chat request: its tokens are those of the prompt that the chat template renders. */
    messages?: ChatMessage[] | null;
    /** With `messages`: functions that the model may call, as in a chat request. */
    tools?: any;
    /** With `messages`: variables for the chat template. */
    chat_template_kwargs?: any;
    /** For a text: whether the tokenizer adds its start and end tokens. Default true. */
    add_special_tokens?: boolean | null;
    /** For a text: read special tokens written in it as those tokens. Default false. */
    parse_special?: boolean | null;
  } :
  P extends '/v1/score' ? {
    /** Name or id of an encoder or a reward model; absent = the configured encoder. */
    model?: string | null;
    /** A text that is compared with each of `text_2`, or a list as long as it. */
    text_1: any;
    /** A text, or a list of texts. */
    text_2: any;
    /** Accepted, without effect. */
    user?: any;
  } :
  P extends '/session' ? {
    /** An admin or feedback key. */
    key?: string | null;
    /** Or: a personal sign-in link's token. */
    link?: string | null;
    /** Or: an invite, with the name of the new person; absent = the name in the invite. */
    invite?: string | null;
    name?: string | null;
  } :
  P extends `/admin/sets/${string}/known-answer` ? {
    /** `gold` stays hidden from labelers; `calibration` is shown to them after the judgment. */
    kind: SetKind;
    /** Every completion of the set once. */
    tiers: Tier[];
    /** Explanation in Markdown; shown after the judgment of calibration sets. */
    explanation?: string | null;
  } :
  P extends `/admin/projects/${string}/members` ? {
    labeler_id: string;
    /** Judgments a day in this project; null or absent = the person's own quota, 0 = no limit. */
    daily_quota?: number | null;
  } :
  P extends `/admin/labelers/${string}/active` ? {
    active: boolean;
  } :
  P extends `/v1/review/sets/${string}/settle` ? {
    lease_token?: string | null;
    /** `ranked`, `all_bad`, `unrankable` or `skip`. */
    outcome: Outcome;
    /** Every completion of the set once, when ranked. */
    items?: Item[];
    strength?: Strength | null;
    rationale?: string | null;
    flags?: Flag[];
    /** The labeler's ideal answer; stored as a demonstration. */
    ideal_answer?: string | null;
    active_ms?: number;
    wall_ms?: number;
    /** A name for this judgment, 1 to 200 bytes: sent again under it, the judgment is stored once and the answer is the
     * first one. Another judgment under it is refused (`idempotency_key_reused`). */
    idempotency_key: string;
    /** The judgment that this one corrects. */
    revises?: string | null;
    /** Version of the guidelines that were shown. */
    guideline_version?: string | null;
    /** Of the rubric as it was shown. Without it, ratings are by the active rubric. */
    rubric_version?: string | null;
    /** Each completion at most once on each dimension of the rubric. */
    ratings?: Rating[];
    /** Spans that are wrong, at most 64; those of one completion do not overlap. */
    spans?: SpanInput[];
    /** Completions as they should be, each at most once; stored as demonstrations that name the completion they correct. */
    corrections?: CorrectedText[];
  } :
  P extends `/admin/labelers/${string}/erase` ? {
    /** `anonymise`: rankings are kept without an author, written texts are removed. `remove`: judgments and
     * demonstrations are removed. */
    judgments: Erase;
  } :
  P extends `/admin/labelers/${string}/link` ? {
    /** Hours until it stops working; absent = until it is revoked or replaced. */
    expires_hours?: number | null;
  } :
  P extends `/v1/label/${string}/judgment` ? {
    lease_token?: string | null;
    /** `ranked`, `all_bad`, `unrankable` or `skip`. */
    outcome: Outcome;
    /** Every completion of the set once, when ranked. */
    items?: Item[];
    strength?: Strength | null;
    rationale?: string | null;
    flags?: Flag[];
    /** The labeler's ideal answer; stored as a demonstration. */
    ideal_answer?: string | null;
    active_ms?: number;
    wall_ms?: number;
    /** A name for this judgment, 1 to 200 bytes: sent again under it, the judgment is stored once and the answer is the
     * first one. Another judgment under it is refused (`idempotency_key_reused`). */
    idempotency_key: string;
    /** The judgment that this one corrects. */
    revises?: string | null;
    /** Version of the guidelines that were shown. */
    guideline_version?: string | null;
    /** Of the rubric as it was shown. Without it, ratings are by the active rubric. */
    rubric_version?: string | null;
    /** Each completion at most once on each dimension of the rubric. */
    ratings?: Rating[];
    /** Spans that are wrong, at most 64; those of one completion do not overlap. */
    spans?: SpanInput[];
    /** Completions as they should be, each at most once; stored as demonstrations that name the completion they correct. */
    corrections?: CorrectedText[];
  } :
  P extends `/v1/label/${string}/release` ? {
    lease_token: string;
  } :
  P extends `/admin/labelers/${string}` ? {
    role?: Role | null;
    /** Judgments a day (UTC): 0 = no limit, null = as configured. */
    daily_quota?: number | null;
    active?: boolean | null;
  } :
  P extends `/admin/projects/${string}` ? {
    name?: string | null;
    /** `true`: nothing is handed out from it any more; `false`: it is in use again. */
    archived?: boolean | null;
  } :
  P extends `/v1/label/${string}/renew` ? {
    lease_token: string;
  } :
  P extends `/admin/jobs/${string}` ? {
    name?: string | null;
    note?: string | null;
    tags?: string[] | null;
  } :
  Record<string, never>;

/** What may stand in the query of GET. */
export type GetQuery<P extends string> = string extends P ? any :
  P extends '/admin/api/quality/consensus' ? { kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; days?: number | null | undefined | ''; project?: string | null | undefined | ''; replicates?: number | null | undefined | ''; seed?: number | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/api/quality/versions' ? { kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; days?: number | null | undefined | ''; project?: string | null | undefined | ''; replicates?: number | null | undefined | ''; seed?: number | null | undefined | ''; length_controlled?: boolean | null | undefined | '' } :
  P extends '/admin/api/quality/ratings' ? { kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; days?: number | null | undefined | ''; project?: string | null | undefined | ''; replicates?: number | null | undefined | ''; seed?: number | null | undefined | '' } :
  P extends '/admin/api/quality/judges' ? { kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; days?: number | null | undefined | ''; project?: string | null | undefined | ''; replicates?: number | null | undefined | ''; seed?: number | null | undefined | '' } :
  P extends '/admin/webhook-deliveries' ? { webhook?: string | null | undefined | ''; state?: 'pending' | 'delivered' | 'failed' | null | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/label/conversations' ? { set_id?: string | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/api/throughput' ? { days?: number | null | undefined | ''; project?: string | null | undefined | '' } :
  P extends '/admin/api/judgments' ? { labeler?: string | null | undefined | ''; set?: string | null | undefined | ''; kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; outcome?: 'ranked' | 'all_bad' | 'unrankable' | 'skip' | null | null | undefined | ''; q?: string | null | undefined | ''; project?: string | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/api/overview' ? { project?: string | null | undefined | '' } :
  P extends '/v1/comparison-sets' ? { status?: 'open' | 'done' | 'retired' | null | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/api/quality' ? { kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; days?: number | null | undefined | ''; project?: string | null | undefined | ''; replicates?: number | null | undefined | ''; seed?: number | null | undefined | '' } :
  P extends '/admin/guidelines' ? { project?: string | null | undefined | '' } :
  P extends '/admin/sets/draws' ? { after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/label/history' ? { after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/rubrics' ? { project?: string | null | undefined | '' } :
  P extends '/v1/guidelines' ? { lang?: string | null | undefined | ''; project?: string | null | undefined | '' } :
  P extends '/v1/label/next' ? { set_id?: string | null | undefined | ''; project?: string | null | undefined | ''; resume?: boolean | null | undefined | ''; except?: string | null | undefined | ''; lang?: string | null | undefined | '' } :
  P extends '/admin/export' ? { format: string | null | undefined | ''; split?: 'train' | 'heldout' | null | null | undefined | ''; project?: string | null | undefined | ''; dataset?: string | null | undefined | ''; feedback?: boolean | null | undefined | ''; labelers?: 'human' | 'model' | 'all' | null | null | undefined | '' } :
  P extends '/session/oidc' ? { page?: 'label' | 'admin' | 'chat' | 'explore' | null | undefined | '' } :
  P extends '/v1/judgments' ? { after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/audit' ? { actor?: string | null | undefined | ''; action?: string | null | undefined | ''; target?: string | null | undefined | ''; since?: number | null | undefined | ''; until?: number | null | undefined | ''; before?: number | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/label/me' ? { project?: string | null | undefined | '' } :
  P extends '/admin/jobs' ? { state?: 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled' | null | null | undefined | ''; kind?: string | null | undefined | ''; q?: string | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/admin/sets' ? { status?: 'open' | 'done' | 'retired' | null | null | undefined | ''; kind?: 'normal' | 'gold' | 'calibration' | null | null | undefined | ''; policy?: string | null | undefined | ''; q?: string | null | undefined | ''; project?: string | null | undefined | ''; labeler?: string | null | undefined | ''; disputed?: boolean | null | undefined | ''; stuck?: boolean | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/batches' ? { after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/prompts' ? { after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/rubric' ? { project?: string | null | undefined | '' } :
  P extends '/v1/files' ? { purpose?: 'batch' | 'batch_output' | null | null | undefined | ''; after?: string | null | undefined | ''; limit?: number | null | undefined | '' } :
  P extends '/v1/plan' ? { preset?: string | null | undefined | ''; bandwidth_gb_s?: number | null | undefined | ''; tflops?: number | null | undefined | ''; memory_gib?: number | null | undefined | ''; context?: number | null | undefined | ''; batch?: number | null | undefined | ''; lora_rank?: number | null | undefined | '' } :
  P extends `/admin/jobs/${string}/metrics` ? { names?: string | null | undefined | '' } :
  P extends `/admin/jobs/${string}/events` ? { format?: string | null | undefined | ''; after?: number | null | undefined | '' } :
  Record<string, never>;

/** One event of a stream. */
export type EventOf<P extends string> = string extends P ? any :
  P extends '/v1/chat/completions' ? ChatChunkEvent :
  P extends '/v1/label/continue' ? AskEvent :
  P extends '/v1/completions' ? TextCompletionEvent :
  P extends '/v1/label/ask' ? AskEvent :
  P extends '/v1/responses' ? ResponseEvent :
  P extends '/v1/messages' ? AnthropicEvent :
  P extends `/admin/jobs/${string}/events` ? StreamedJobEvent :
  never;
