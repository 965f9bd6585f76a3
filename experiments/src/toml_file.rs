//! Reading a TOML config strictly: every complaint names the file, the line, the key, and the nearest key that is valid.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Reads a config and applies `key=value` overrides (dotted keys, TOML values; a bare word is a string).
///
/// A config may name another as its `base` (a path relative to its own): its tables are laid over those of the base, key by
/// key; only a table whose `kind` changes replaces the base's whole.
///
/// # Errors
/// One line: the file, the line where it can be told, the key, what was expected, the nearest valid key.
pub fn load<T: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<T> {
    let mut sources = Vec::new();
    let mut table = read(path, &mut sources)?;
    for text in overrides {
        apply(&mut table, text)?;
    }
    serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| complain(&sources, overrides, &e))
}

/// A file whose text went into a config.
struct Source {
    name: String,
    text: String,
}

/// The most configs that may stand on each other.
const MAX_BASES: usize = 8;

/// A config over its bases; `sources` gets the files, nearest first.
fn read(path: &Path, sources: &mut Vec<Source>) -> Result<Table> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the config {name}"))?;
    let mut table: Table = toml::from_str(&text).map_err(|e| {
        let line = e.span().map_or(0, |span| line_at(&text, span.start));
        anyhow!("{name}, line {line}: {}", one_line(e.message()))
    })?;
    sources.push(Source { name, text });
    let Some(base) = table.remove("base") else { return Ok(table) };
    let base =
        base.as_str().with_context(|| format!("{}: base: expected the path of a config", path.display()))?;
    if sources.len() > MAX_BASES {
        bail!(
            "{}: base = {base:?}: more than {MAX_BASES} configs stand on each other; is there a circle?",
            path.display()
        );
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut whole = read(&folder.join(base), sources)?;
    lay_over(&mut whole, table);
    Ok(whole)
}

fn lay_over(base: &mut Table, above: Table) {
    for (key, value) in above {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(value))
                if value.get("kind").is_none_or(|kind| below.get("kind") == Some(kind)) =>
            {
                lay_over(below, value);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Sets one dotted key.
fn apply(table: &mut Table, text: &str) -> Result<()> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set {text}: expected key=value, such as --set train.steps=100");
    };
    let (key, value) = (key.trim(), value.trim());
    let value = toml::from_str::<Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| Value::String(value.into()));
    let mut parts: Vec<&str> = key.split('.').collect();
    let last =
        parts.pop().filter(|last| !last.is_empty()).context(format!("--set {text}: the key is empty"))?;
    let mut table = table;
    for part in parts {
        table = table
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .with_context(|| format!("--set {text}: {part} is a value, not a table"))?;
    }
    table.insert(last.into(), value);
    Ok(())
}

fn complain(
    sources: &[Source],
    overrides: &[String],
    error: &serde_path_to_error::Error<toml::de::Error>,
) -> anyhow::Error {
    let path = error.path().to_string();
    let message = one_line(error.inner().message());
    // serde names an unknown key only inside its message: "unknown field `x`, expected one of `a`, `b`".
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let unknown = (message.starts_with("unknown field") || message.starts_with("unknown variant"))
        .then(|| quoted.first().copied())
        .flatten();
    let place = match overrides.iter().find(|text| override_fits(text, &path, unknown)) {
        Some(text) => format!("--set {}", text.split('=').next().unwrap_or(text).trim()),
        None => place(sources, &path, unknown),
    };
    let nearest = unknown.and_then(|unknown| {
        let score = |candidate: &str| {
            strsim::jaro_winkler(unknown, candidate)
                .max(strsim::normalized_damerau_levenshtein(unknown, candidate))
        };
        let best = quoted[1..].iter().max_by(|a, b| score(a).total_cmp(&score(b)));
        best.filter(|candidate| score(candidate) > 0.6)
    });
    match nearest {
        Some(nearest) => anyhow!("{place}: {message}. Did you mean `{nearest}`?"),
        None => anyhow!("{place}: {message}"),
    }
}

/// Whether an override is what serde complains of: it sets the key at `path`, or below it the unknown word.
fn override_fits(text: &str, path: &str, unknown: Option<&str>) -> bool {
    let Some((key, value)) = text.split_once('=') else { return false };
    let (key, value) = (key.trim(), value.trim().trim_matches('"'));
    let last = key.rsplit('.').next().unwrap_or(key);
    lies_below(key, path) && unknown.is_none_or(|unknown| last == unknown || value == unknown || key == path)
}

/// Whether a dotted key is `path`, or within the table of that name; `.` is the whole file.
fn lies_below(key: &str, path: &str) -> bool {
    path == "." || key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// File, line and key of what serde complains of. Inside a table with a `kind`, serde's path ends at that table: the unknown
/// word itself tells the line then.
fn place(sources: &[Source], path: &str, unknown: Option<&str>) -> String {
    let word = |key: &str, value: &str| {
        unknown.is_some_and(|unknown| {
            key.rsplit('.').next() == Some(unknown) || value.split(['"', '\'']).any(|part| part == unknown)
        })
    };
    let by_word = || find_line(sources, |key, value| lies_below(key, path) && word(key, value));
    let exact = || find_line(sources, |key, _| key == path);
    let parents = || {
        let mut wanted = path;
        while let Some((parent, _)) = wanted.rsplit_once('.') {
            wanted = parent;
            if let Some(found) = find_line(sources, |key, _| key == wanted) {
                return Some(found);
            }
        }
        None
    };
    match by_word().or_else(exact).or_else(parents) {
        Some((source, line, key)) => format!("{}, line {line}, {key}", source.name),
        None => format!("{}, {path}", sources[0].name),
    }
}

/// The first line whose key and value fit, nearest file first; the header of a table is its key without a value.
fn find_line(sources: &[Source], fits: impl Fn(&str, &str) -> bool) -> Option<(&Source, usize, String)> {
    for source in sources {
        let mut section = String::new();
        for (index, line) in source.text.lines().enumerate() {
            let line = line.trim();
            let (key, value) = if let Some(header) = line.strip_prefix('[') {
                section = header.trim_matches(['[', ']']).replace(' ', "");
                (section.clone(), "")
            } else if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                let name = name.replace([' ', '"'], "");
                (if section.is_empty() { name } else { format!("{section}.{name}") }, value)
            } else {
                continue;
            };
            if fits(&key, value) {
                return Some((source, index + 1, key));
            }
        }
    }
    None
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_at(text: &str, offset: usize) -> usize {
    text[..offset.min(text.len())].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        name: String,
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        steps: u64,
        #[serde(default)]
        learning_rate: f64,
    }

    const GOOD: &str = "name = \"a\"\n\n[inner]\nsteps = 3\n";

    fn load_text(text: &str, overrides: &[&str]) -> Result<Outer> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("base.toml"), GOOD).unwrap();
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).into()).collect();
        load(&path, &overrides)
    }

    fn message(text: &str, overrides: &[&str]) -> String {
        let message = load_text(text, overrides).unwrap_err().to_string();
        // Without the folder.
        message
            .find("run.toml")
            .or(message.find("base.toml"))
            .map_or(message.clone(), |at| message[at..].into())
    }

    #[test]
    fn a_config_is_laid_over_its_base() {
        let config = load_text("base = \"base.toml\"\n[inner]\nlearning_rate = 2.0\n", &[]).unwrap();
        assert_eq!((config.name.as_str(), config.inner.steps, config.inner.learning_rate), ("a", 3, 2.0));
        let unknown = message("base = \"base.toml\"\n[inner]\nstps = 2\n", &[]);
        assert!(unknown.starts_with("run.toml, line 3, inner.stps"), "{unknown}");
        assert!(message("base = \"run.toml\"\n", &[]).contains("circle"));
        assert!(message("base = \"no.toml\"\n", &[]).contains("no.toml"));
    }

    #[test]
    fn overrides_reach_into_tables() {
        let config = load_text(GOOD, &["inner.steps=7", "inner.learning_rate = 1e-3"]).unwrap();
        assert_eq!((config.inner.steps, config.inner.learning_rate), (7, 1e-3));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one() {
        let message = message("name = \"a\"\n\n[inner]\nsteps = 3\nlearning_rte = 1.0\n", &[]);
        assert!(message.starts_with("run.toml, line 5, inner.learning_rte: unknown field"), "{message}");
        assert!(message.ends_with("Did you mean `learning_rate`?"), "{message}");
    }

    #[test]
    fn malformed_toml_and_wrong_types_name_the_line() {
        assert!(message("name = \n", &[]).starts_with("run.toml, line 1: "));
        let wrong = message("name = \"a\"\n[inner]\nsteps = \"three\"\n", &[]);
        assert!(wrong.starts_with("run.toml, line 3, inner.steps: invalid type"), "{wrong}");
        assert!(load_text(GOOD, &["inner.stps=4"]).unwrap_err().to_string().starts_with("--set inner.stps"));
        assert!(message(GOOD, &["steps"]).contains("key=value"));
    }
}
