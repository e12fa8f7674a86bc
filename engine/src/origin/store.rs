//! One store behind the crate `object_store`: S3, GCS, Azure Blob or an HTTP server. No other module uses the crate.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreScheme, RetryConfig};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::{Arc, Once};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::errors::StartError;
use crate::settings::OriginSettings;

/// Requests of one mount at a time.
const MAX_REQUESTS: usize = 32;
/// How long a request may be tried again by the crate before the error shows.
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_RETRIES: usize = 4;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a store may take to answer, the crate's retries included; a stalled body ends by `stall_timeout`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a whole request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// Metadata of an object at its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginMeta {
    pub size: u64,
    pub etag: Option<String>,
    /// Seconds since 1970.
    pub modified: i64,
}

/// Why a store gave no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    NotFound,
    /// The store refuses the server's credentials, or it has none.
    Forbidden(String),
    /// The object is still of the version that the request named.
    NotModified,
    /// The object is no longer of the version that the request named.
    Changed,
    /// The store does not answer this range: the object is empty, or the store knows no ranges.
    NoRange,
    /// No such key can be in a store.
    BadKey,
    /// The store is not there, does not answer, or answers with an error of its own.
    Unavailable(String),
}

/// An object, or a part of it, on its way.
pub struct Download {
    pub meta: OriginMeta,
    /// The part that comes.
    pub range: Range<u64>,
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    _permit: OwnedSemaphorePermit,
}

impl Download {
    /// The next bytes; None at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        self.stream.next().await.map(|bytes| bytes.map_err(StoreError::from))
    }
}

/// Which version a request is for.
#[derive(Debug, Clone, Copy)]
pub enum Condition<'a> {
    Any,
    /// This one alone.
    Match(&'a str),
    /// Any but this one.
    NoneMatch(&'a str),
}

#[derive(Debug)]
pub struct Store {
    store: Arc<dyn ObjectStore>,
    base: Path,
    name: String,
    requests: Arc<Semaphore>,
}

impl Store {
    pub fn open(settings: &OriginSettings) -> Result<Store, StartError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails only where the process has one.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let failed = |why: String| StartError::new(Errno::INVAL, why, settings.url.clone());
        let url = Url::parse(&settings.url)
            .map_err(|error| failed(format!("origin {}: not a URL: {error}", settings.prefix)))?;
        let (scheme, base) = ObjectStoreScheme::parse(&url)
            .map_err(|_| failed(format!("origin {}: not a URL of a store", settings.prefix)))?;
        let store = build(&scheme, &url, &settings.options)
            .map_err(|error| failed(format!("origin {}: {}", settings.prefix, in_one_line(&error))))?;
        let name = name_of(&scheme, &settings.url, &settings.options);
        Ok(Store { store, base, name, requests: Arc::new(Semaphore::new(MAX_REQUESTS)) })
    }

    /// What tells this store from others: its URL, and the endpoint where one is set.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn location(&self, key: &str) -> Result<Path, StoreError> {
        let key = Path::parse(key).map_err(|_| StoreError::BadKey)?;
        Ok(self.base.parts().chain(key.parts()).collect())
    }

    /// Asks for an object, or for a part of it. Waits for its turn where the mount has many requests under way.
    pub async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        condition: Condition<'_>,
    ) -> Result<Download, StoreError> {
        let mut options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        match condition {
            Condition::Any => {}
            Condition::Match(etag) => options.if_match = Some(etag.to_owned()),
            Condition::NoneMatch(etag) => options.if_none_match = Some(etag.to_owned()),
        }
        let (result, permit) = self.request(key, options).await?;
        let (meta, range) = (OriginMeta::of(&result.meta), result.range.clone());
        Ok(Download { meta, range, stream: result.into_stream(), _permit: permit })
    }

    /// Asks for an object's metadata alone.
    pub async fn head(&self, key: &str) -> Result<OriginMeta, StoreError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        self.request(key, options).await.map(|(result, _)| OriginMeta::of(&result.meta))
    }

    async fn request(
        &self,
        key: &str,
        options: GetOptions,
    ) -> Result<(object_store::GetResult, OwnedSemaphorePermit), StoreError> {
        let location = self.location(key)?;
        let permit = Arc::clone(&self.requests).acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::Unavailable("the server is stopping".to_owned()))?;
        let has_range = options.range.is_some();
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.store.get_opts(&location, options)).await;
        let Ok(answer) = answer else {
            return Err(StoreError::Unavailable(format!("no answer for {ANSWER_TIMEOUT:?}")));
        };
        match answer {
            Ok(result) => Ok((result, permit)),
            Err(error) if has_range && is_about_range(&error) => Err(StoreError::NoRange),
            Err(error) => Err(error.into()),
        }
    }
}

impl OriginMeta {
    fn of(meta: &object_store::ObjectMeta) -> OriginMeta {
        OriginMeta { size: meta.size, etag: meta.e_tag.clone(), modified: meta.last_modified.timestamp() }
    }
}

impl From<object_store::Error> for StoreError {
    fn from(error: object_store::Error) -> StoreError {
        use object_store::Error::{
            InvalidPath, NotFound, NotModified, PermissionDenied, Precondition, Unauthenticated,
        };
        match error {
            NotFound { .. } => StoreError::NotFound,
            NotModified { .. } => StoreError::NotModified,
            Precondition { .. } => StoreError::Changed,
            InvalidPath { .. } => StoreError::BadKey,
            PermissionDenied { .. } | Unauthenticated { .. } => StoreError::Forbidden(in_one_line(&error)),
            _ => StoreError::Unavailable(in_one_line(&error)),
        }
    }
}

/// Whether a store refused a request for its range alone: 416, or an answer without one.
fn is_about_range(error: &object_store::Error) -> bool {
    let text = chain(error);
    matches!(error, object_store::Error::NotSupported { .. })
        || text.contains("status code: 416")
        || text.contains("Received non-partial response")
}

/// The messages of an error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// An error for the log: on one line, and no longer than a line should be.
fn in_one_line(error: &object_store::Error) -> String {
    let text: Vec<String> = chain(error).split_whitespace().map(str::to_owned).collect();
    text.join(" ").chars().take(300).collect()
}

fn build(
    scheme: &ObjectStoreScheme,
    url: &Url,
    options: &BTreeMap<String, String>,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let client = || {
        ClientOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(REQUEST_TIMEOUT)
            // An http:// URL is its own consent.
            .with_allow_http(url.scheme() == "http")
    };
    let retry =
        || RetryConfig { max_retries: MAX_RETRIES, retry_timeout: RETRY_TIMEOUT, ..Default::default() };
    macro_rules! configured {
        ($prefix:expr, $builder:expr) => {{
            let mut builder = $builder.with_client_options(client()).with_retry(retry());
            // As the cloud's own tools do; what is no option of the crate is another program's.
            for (name, value) in environment($prefix) {
                let is_given =
                    name.contains("endpoint") && options.keys().any(|key| key.contains("endpoint"));
                if let (false, Ok(name)) = (is_given, name.parse()) {
                    builder = builder.with_config(name, value);
                }
            }
            for (name, value) in options {
                builder = builder.with_config(name.parse()?, value);
            }
            Arc::new(builder.build()?) as Arc<dyn ObjectStore>
        }};
    }
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => configured!("AWS_", AmazonS3Builder::new().with_url(url.as_str())),
        ObjectStoreScheme::GoogleCloudStorage => {
            configured!("GOOGLE_", GoogleCloudStorageBuilder::new().with_url(url.as_str()))
        }
        ObjectStoreScheme::MicrosoftAzure => {
            configured!("AZURE_", MicrosoftAzureBuilder::new().with_url(url.as_str()))
        }
        ObjectStoreScheme::Http => {
            configured!("", HttpBuilder::new().with_url(&url[..url::Position::BeforePath]))
        }
        other => {
            let source = format!("{other:?} is not a kind of origin").into();
            return Err(object_store::Error::Generic { store: "origin", source });
        }
    })
}

/// What tells a store from others: its URL, its endpoint and its account, without a user or a password. The names are
/// the crate's, in the order in which it takes them.
fn name_of(scheme: &ObjectStoreScheme, url: &str, options: &BTreeMap<String, String>) -> String {
    let (endpoints, accounts): (&[&str], &[&str]) = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            (&["aws_endpoint_url_s3", "endpoint", "aws_endpoint", "aws_endpoint_url", "endpoint_url"], &[])
        }
        ObjectStoreScheme::MicrosoftAzure => (
            &["endpoint", "azure_endpoint", "azure_storage_endpoint"],
            &["account_name", "azure_storage_account_name", "azure_account_name"],
        ),
        ObjectStoreScheme::GoogleCloudStorage => (&["google_base_url", "base_url"], &[]),
        _ => (&[], &[]),
    };
    let given = |names: &[&str]| {
        let option = names.iter().find_map(|name| options.get(*name).cloned());
        option.or_else(|| names.iter().find_map(|name| std::env::var(name.to_ascii_uppercase()).ok()))
    };
    let mut name = url.to_owned();
    if let Some(account) = given(accounts) {
        name = format!("{name} of {account}");
    }
    if let Some(endpoint) = given(endpoints) {
        name = format!("{name} at {}", without_credentials(&endpoint));
    }
    name
}

fn without_credentials(endpoint: &str) -> String {
    let Ok(mut url) = Url::parse(endpoint) else { return "an invalid endpoint".to_owned() };
    // Fails for URLs that have neither.
    let _ = (url.set_username(""), url.set_password(None));
    url.as_str().trim_end_matches('/').to_owned()
}

/// The variables whose names begin so, with their names in lower case. None where the prefix is empty.
fn environment(prefix: &str) -> impl Iterator<Item = (String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let variables = std::env::vars_os().filter_map(text);
    variables
        .filter(move |(name, _)| !prefix.is_empty() && name.starts_with(prefix))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
}

impl std::fmt::Debug for Download {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Download")
            .field("meta", &self.meta)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(scheme: &ObjectStoreScheme, options: &[(&str, &str)]) -> String {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        name_of(scheme, "az://data", &options)
    }

    #[test]
    fn stores_that_differ_in_account_or_endpoint_have_different_names() {
        use ObjectStoreScheme::{AmazonS3, MicrosoftAzure};
        let accounts = ["one", "two"].map(|account| name(&MicrosoftAzure, &[("account_name", account)]));
        assert_ne!(accounts[0], accounts[1]);
        for alias in ["endpoint", "aws_endpoint", "aws_endpoint_url", "endpoint_url", "aws_endpoint_url_s3"] {
            assert_eq!(name(&AmazonS3, &[(alias, "http://host:1/")]), "az://data at http://host:1");
        }
    }

    #[test]
    fn a_name_has_no_user_and_no_password() {
        let name = name(&ObjectStoreScheme::AmazonS3, &[("endpoint", "https://user:canary@host")]);
        assert_eq!(name, "az://data at https://host");
    }
}
