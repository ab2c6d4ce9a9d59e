//! Logs and traces: how the service shows what it does. Prompts, answers and secrets are in neither.
//!
//! Logs go to standard error. Traces go to an OpenTelemetry collector (Jaeger takes OTLP on port 4317) when
//! `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; a collector that is down costs spans,
//! never a job.

pub mod health;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use crate::world::World;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person at a terminal.
    Human,
    /// One JSON object a line, for a service's log.
    Json,
}

/// Keeps the exporter. Shut it down after the last actor has stopped, or the last spans are lost.
#[must_use]
pub struct Telemetry(Option<SdkTracerProvider>);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the log level `{level}` can't be understood ({message}): use error, warn, info, debug or trace")]
    Level { level: String, message: String },
    #[error("the trace exporter can't be set up ({0}): check the OTEL_EXPORTER_OTLP_… variables")]
    Exporter(String),
    #[error("logging is set up already")]
    Twice,
}

/// Sets up logs and, where the environment asks for them, traces. Must be called inside the runtime, once.
///
/// # Errors
/// When the level or an `OTEL_…` variable can't be used.
pub fn start(
    level: &str,
    format: LogFormat,
    env: &BTreeMap<String, String>,
    world: &World,
) -> Result<Telemetry, TelemetryError> {
    // ractor opens a span around every actor's whole life; libraries' own chatter is theirs.
    let quiet = "ractor=warn,hyper=warn,h2=warn,tonic=warn,reqwest=warn,opentelemetry=warn,sqlx=warn,rustls=warn";
    let filter = EnvFilter::try_new(format!("{level},{quiet}"))
        .map_err(|error| TelemetryError::Level { level: level.to_owned(), message: error.to_string() })?;
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let logs: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Human => logs.with_target(false).compact().with_filter(filter).boxed(),
        LogFormat::Json => logs.json().with_filter(filter).boxed(),
    };
    let provider = wants_traces(env).then(|| provider(env, world)).transpose()?;
    let traces = provider.as_ref().map(traces);
    tracing_subscriber::registry().with(logs).with(traces).try_init().map_err(|_| TelemetryError::Twice)?;
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(Telemetry(provider))
}

impl Telemetry {
    /// Sends what is left and stops. Off the runtime's threads: the exporter needs them to send.
    pub async fn shutdown(self) {
        let Some(provider) = self.0 else { return };
        // A collector that is gone makes this fail, and there is nobody left to tell.
        let _ = tokio::task::spawn_blocking(move || provider.shutdown()).await;
    }
}

/// The variables that the OpenTelemetry crates do not read themselves: `OTEL_SDK_DISABLED`, `OTEL_TRACES_EXPORTER`.
fn wants_traces(env: &BTreeMap<String, String>) -> bool {
    let is = |key: &str, value: &str| env.get(key).is_some_and(|set| set.trim().eq_ignore_ascii_case(value));
    let has = |key: &str| env.get(key).is_some_and(|set| !set.trim().is_empty());
    let endpoint = has("OTEL_EXPORTER_OTLP_ENDPOINT") || has("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    endpoint && !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none")
}

fn provider(env: &BTreeMap<String, String>, world: &World) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .build()
        .map_err(|error| TelemetryError::Exporter(error.to_string()))?;
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", world.token(16)),
    ];
    // A name set in code would win over the standard variable.
    if !env.contains_key("OTEL_SERVICE_NAME") {
        attributes.push(KeyValue::new("service.name", "janebot"));
    }
    let resource = Resource::builder().with_attributes(attributes).build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

fn traces<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let filter = EnvFilter::new("info,ractor=off,opentelemetry=off,hyper=off,h2=off,tonic=off,reqwest=off,sqlx=off");
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("janebot"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn traces_are_sent_only_where_an_endpoint_is_named_and_nothing_turns_them_off() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317");
        assert!(!wants_traces(&env(&[])));
        assert!(!wants_traces(&env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")])));
        assert!(wants_traces(&env(&[endpoint])));
        assert!(!wants_traces(&env(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")])));
        assert!(!wants_traces(&env(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")])));
    }
}
