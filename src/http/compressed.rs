//! Compresses responses with gzip, if the configuration allows it and the client accepts it. `pages` compresses the
//! files of the pages in any case.

use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

/// Shorter responses (bytes) are not compressed, because gzip's overhead would exceed the saving.
const SHORTEST: u64 = 1024;

/// Event streams are excluded because a reader waits for each event; pictures and fonts are compressed already.
pub fn layer() -> CompressionLayer<impl Predicate> {
    let worth_it = SizeAbove::new(SHORTEST)
        .and(NotForContentType::SSE)
        .and(NotForContentType::IMAGES)
        .and(NotForContentType::const_new("font/"));
    CompressionLayer::new().compress_when(worth_it)
}
