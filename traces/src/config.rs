//! OpenTelemetry's own variables, as its specification has them. An empty one counts as not set.

use clap::{ArgAction, Args};
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, ShouldSample};
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;
use uuid::Uuid;

use crate::sampling::Share;

/// Whether traces are made, and where they go.
#[derive(Args, Clone, Debug)]
#[allow(clippy::struct_field_names, reason = "the variables are named so")]
#[command(next_help_heading = "Traces")]
pub struct TracesConfig {
    /// Base URL of an OpenTelemetry collector, as in `http://collector:4318`: spans go to `/v1/traces` there, by OTLP over
    /// HTTP. No traces are made when unset.
    #[arg(long, env, value_parser = base_url)]
    otel_exporter_otlp_endpoint: Option<Endpoint>,
    /// The whole URL that spans go to, instead.
    #[arg(long, env, value_parser = whole_url)]
    otel_exporter_otlp_traces_endpoint: Option<Endpoint>,
    /// How the collector is spoken to: only http/protobuf is known.
    #[arg(long, env, default_value = "http/protobuf", value_parser = protocol)]
    otel_exporter_otlp_protocol: String,
    /// Headers of the requests to the collector, as in `authorization=Bearer%20…`; several, separated by commas.
    #[arg(long, env, hide_env_values = true, value_parser = headers)]
    otel_exporter_otlp_headers: Option<HeaderMap>,
    /// Name of the service in its traces; the program's name when unset.
    #[arg(long, env)]
    otel_service_name: Option<String>,
    /// What else is said of the service, as in `deployment.environment.name=production`; several, separated by commas.
    #[arg(long, env, value_parser = attributes)]
    otel_resource_attributes: Option<Attributes>,
    /// Which traces are made: `always_on`, `always_off` or `traceidratio`; with `parentbased_` in front, what has a
    /// `traceparent` goes by that.
    #[arg(long, env, default_value = "parentbased_always_on", value_parser = sampling)]
    otel_traces_sampler: Sampling,
    /// Share of the traces that `traceidratio` makes, from 0 to 1; 1 when unset.
    #[arg(long, env, value_parser = ratio)]
    otel_traces_sampler_arg: Option<Ratio>,
    /// `true` turns traces off whatever else is set.
    #[arg(long, env, default_value_t = false, action = ArgAction::Set, value_parser = is_true)]
    otel_sdk_disabled: bool,
}

// Not aliases of options: clap would take those for "may be left out".
#[derive(Clone, Debug)]
struct Endpoint(Option<Url>);

#[derive(Clone, Copy, Debug)]
struct Ratio(f64);

#[derive(Clone, Debug)]
struct Attributes(Vec<(String, String)>);

/// A sampler, before its argument is known.
#[derive(Clone, Copy, Debug)]
struct Sampling {
    by_parent: bool,
    root: Root,
}

/// What decides where there is no parent, or none that counts.
#[derive(Clone, Copy, Debug)]
enum Root {
    AlwaysOn,
    AlwaysOff,
    Share,
}

impl TracesConfig {
    /// Where spans go, if they go anywhere.
    pub(crate) fn endpoint(&self) -> Option<Url> {
        let given = [&self.otel_exporter_otlp_traces_endpoint, &self.otel_exporter_otlp_endpoint];
        let endpoint = given.into_iter().flatten().find_map(|endpoint| endpoint.0.clone());
        endpoint.filter(|_| !self.otel_sdk_disabled)
    }

    pub(crate) fn headers(&self) -> HeaderMap {
        self.otel_exporter_otlp_headers.clone().unwrap_or_default()
    }

    /// What a process says of itself.
    pub(crate) fn resource(&self, service: &'static str) -> Resource {
        let given = self.otel_resource_attributes.iter().flat_map(|attributes| attributes.0.clone());
        let builder = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", service))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", Uuid::new_v4().to_string()))
            .with_attributes(given.map(|(name, value)| KeyValue::new(name, value)));
        // The variable of its own counts more than the list.
        match self.otel_service_name.clone().filter(|name| !name.is_empty()) {
            Some(name) => builder.with_service_name(name).build(),
            None => builder.build(),
        }
    }

    pub(crate) fn sampler(&self) -> Box<dyn ShouldSample> {
        let root: Box<dyn ShouldSample> = match self.otel_traces_sampler.root {
            Root::AlwaysOn => Sampler::AlwaysOn.into(),
            Root::AlwaysOff => Sampler::AlwaysOff.into(),
            Root::Share => Share::of(self.otel_traces_sampler_arg.map_or(1.0, |ratio| ratio.0)).into(),
        };
        if self.otel_traces_sampler.by_parent { Sampler::parent_based(root).into() } else { root }
    }
}

fn base_url(text: &str) -> Result<Endpoint, String> {
    let mut endpoint = whole_url(text)?;
    if let Some(url) = &mut endpoint.0 {
        let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(endpoint)
}

fn whole_url(text: &str) -> Result<Endpoint, String> {
    if text.is_empty() {
        return Ok(Endpoint(None));
    }
    let url = Url::parse(text).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    let url = url.ok_or("it is not a URL like http://collector:4318")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it holds a user or a password: these go into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    Ok(Endpoint(Some(url)))
}

fn protocol(text: &str) -> Result<String, String> {
    match text {
        "" | "http/protobuf" => Ok(text.to_owned()),
        _ => Err("only http/protobuf is known".to_owned()),
    }
}

fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(text)? {
        let name = HeaderName::try_from(name).map_err(|_| "a header's name is none")?;
        let mut value = HeaderValue::try_from(value).map_err(|_| "a header's value is none")?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn attributes(text: &str) -> Result<Attributes, String> {
    pairs(text).map(Attributes)
}

/// `name=value,name=value`, the values percent-encoded.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        Some((name.trim().to_owned(), value.into_owned())).filter(|(name, _)| !name.is_empty())
    };
    let given = text.split(',').filter(|text| !text.trim().is_empty());
    given.map(pair).collect::<Option<_>>().ok_or_else(|| "each must be a name and a value, as in a=b,c=d".to_owned())
}

fn sampling(text: &str) -> Result<Sampling, String> {
    let name = if text.is_empty() { "parentbased_always_on" } else { text };
    let bare = name.strip_prefix("parentbased_");
    let root = match bare.unwrap_or(name) {
        "always_on" => Root::AlwaysOn,
        "always_off" => Root::AlwaysOff,
        "traceidratio" => Root::Share,
        _ => {
            return Err(
                "it is none of always_on, always_off, traceidratio, nor parentbased_ and one of these".to_owned()
            );
        }
    };
    Ok(Sampling { by_parent: bare.is_some(), root })
}

fn ratio(text: &str) -> Result<Ratio, String> {
    let ratio = if text.is_empty() { Ok(1.0) } else { text.parse() };
    let ratio = ratio.ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.map(Ratio).ok_or_else(|| "it is not a number from 0 to 1".to_owned())
}

/// What is not "true" is false, says the specification.
#[allow(clippy::unnecessary_wraps, reason = "clap's parsers may fail")]
fn is_true(text: &str) -> Result<bool, String> {
    Ok(text.eq_ignore_ascii_case("true"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Sample {
        #[command(flatten)]
        traces: TracesConfig,
    }

    fn endpoint(arguments: &[&str]) -> Option<String> {
        let sample = Sample::try_parse_from([&["sample"], arguments].concat()).expect("the arguments are right");
        sample.traces.endpoint().map(String::from)
    }

    #[test]
    fn the_endpoint_is_found_as_the_specification_says() {
        let (base, whole) = ("--otel-exporter-otlp-endpoint", "--otel-exporter-otlp-traces-endpoint");
        assert_eq!(endpoint(&[]), None);
        assert_eq!(endpoint(&[base, ""]), None);
        assert_eq!(endpoint(&[base, "http://c:4318"]).as_deref(), Some("http://c:4318/v1/traces"));
        assert_eq!(endpoint(&[base, "https://c/otlp/"]).as_deref(), Some("https://c/otlp/v1/traces"));
        assert_eq!(endpoint(&[base, "http://c", whole, "http://d/x"]).as_deref(), Some("http://d/x"));
        assert_eq!(endpoint(&[base, "http://c", "--otel-sdk-disabled", "TRUE"]), None);
        assert!(endpoint(&[base, "http://c", "--otel-sdk-disabled", "1"]).is_some());
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for text in ["collector:4318", "grpc://c:4317", "http://", "http://user:password@c"] {
            assert!(whole_url(text).is_err(), "{text}");
        }
        for text in ["parentbased", "jaeger_remote", "ALWAYS_ON"] {
            assert!(sampling(text).is_err(), "{text}");
        }
        for text in ["-0.1", "1.1", "NaN", "half"] {
            assert!(ratio(text).is_err(), "{text}");
        }
        for text in ["a", "=b", "a b=c", "a=%0a", "a=%ff"] {
            assert!(headers(text).is_err(), "{text}");
        }
        assert!(protocol("grpc").is_err());
    }

    #[test]
    fn headers_are_decoded_and_not_shown() {
        let headers = headers(" authorization = Bearer%20hunter2 , x-tenant=a=b,").expect("they are right");
        assert_eq!(
            (headers["authorization"].as_bytes(), headers["x-tenant"].as_bytes()),
            (&b"Bearer hunter2"[..], &b"a=b"[..])
        );
        assert!(!format!("{headers:?}").contains("hunter2"));
    }
}
