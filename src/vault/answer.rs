//! An answer on its way from the provider to the agent: passed on as it comes, counted, and cut where it must be.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::meter::Meter;
use super::pass::Open;
use super::scan::Repeats;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// Why an answer was cut. The agent sees a broken connection; this is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the job used more than it may")]
    Limit,
    #[error("the answer is longer than {0} bytes")]
    Long(u64),
    #[error("the provider's answer repeats the key")]
    Key,
}

/// A body of the vault's own.
pub(super) fn whole(bytes: impl Into<Bytes>) -> AnswerBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What a call of the model uses, told to its pass while the answer goes by and, whatever becomes of it, at its end.
pub(super) struct Counting {
    open: Arc<Open>,
    call: u64,
    meter: Meter,
    /// Bytes of the request that have gone out, counted elsewhere.
    sent: Arc<AtomicU64>,
}

impl Counting {
    pub fn begin(open: Arc<Open>, meter: Meter, sent: Arc<AtomicU64>) -> Self {
        let call = open.call_began();
        Self { open, call, meter, sent }
    }

    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.meter.sent(self.sent.load(Ordering::Relaxed));
        self.meter.feed(bytes);
        self.open.call_used(self.call, self.meter.so_far())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.open.call_ended(self.call, self.meter.finish());
    }
}

/// The provider's answer, watched.
pub(super) struct Watched {
    inner: reqwest::Body,
    /// There for calls of the model that succeed.
    counting: Option<Counting>,
    repeats: Repeats,
    left: u64,
    limit: u64,
    cut: bool,
    /// Held until the answer is over.
    _permit: OwnedSemaphorePermit,
}

impl Watched {
    pub fn new(
        inner: reqwest::Body,
        counting: Option<Counting>,
        repeats: Repeats,
        limit: u64,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self { inner, counting, repeats, left: limit, limit, cut: false, _permit: permit }
    }

    /// The bytes that may go on now.
    fn look(&mut self, bytes: Bytes) -> Result<Bytes, Cut> {
        let length = bytes.len() as u64;
        self.left = self.left.checked_sub(length).ok_or(Cut::Long(self.limit))?;
        let free = self.repeats.pass(bytes).ok_or(Cut::Key)?;
        let within = self.counting.as_mut().is_none_or(|counting| counting.feed(&free));
        if within { Ok(free) } else { Err(Cut::Limit) }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.cut {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {
                    // What was held back because it might have been the start of a key is none.
                    let rest = self.repeats.rest();
                    self.cut = true;
                    if rest.is_empty() {
                        return Poll::Ready(None);
                    }
                    if let Some(counting) = &mut self.counting {
                        counting.feed(&rest);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            // Trailers are no part of these APIs, and are left out.
            let Ok(bytes) = frame.into_data() else { continue };
            match self.look(bytes) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(cut) => {
                    self.cut = true;
                    match cut {
                        Cut::Key => tracing::error!("a provider's answer repeats the key that it was sent: it is cut"),
                        Cut::Limit | Cut::Long(_) => tracing::warn!(%cut, "an answer is cut"),
                    }
                    return Poll::Ready(Some(Err(cut.into())));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        // Bytes may be held back, never added or left out for good, so the whole length stays; a known one is passed on.
        let mut hint = SizeHint::new();
        if let Some(exact) = self.inner.size_hint().exact() {
            hint.set_exact(exact + self.repeats.held());
        }
        hint
    }
}
