//! Cases that are damaged, wrong or unknown: each is reported, and none passes.

use std::path::{Path, PathBuf};

use reference::verify::{CaseReport, run_case, summary_table, verify};
use serde_json::{Value, json};
use tch::Tensor;

const CASE: &str = "magvit2/cosmos_resblock";

/// A copy of a vendored case that can be spoilt, in a folder that goes away with the test.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vireo-verify-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let copy = Self { folder };
        for (extension, path) in [("json", copy.json()), ("safetensors", copy.tensors())] {
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
            std::fs::copy(golden.join(format!("{CASE}.{extension}")), path).unwrap();
        }
        copy
    }

    fn json(&self) -> PathBuf {
        self.folder.join("case.json")
    }

    fn tensors(&self) -> PathBuf {
        self.folder.join("case.safetensors")
    }

    fn header(&self, change: impl FnOnce(&mut Value)) -> &Self {
        let mut header = serde_json::from_str(&std::fs::read_to_string(self.json()).unwrap()).unwrap();
        change(&mut header);
        std::fs::write(self.json(), header.to_string()).unwrap();
        self
    }

    /// Changes one tensor, or drops it.
    fn tensor(&self, key: &str, change: impl Fn(&Tensor) -> Option<Tensor>) -> &Self {
        let tensors = Tensor::read_safetensors(self.tensors()).unwrap();
        let kept: Vec<(String, Tensor)> = tensors
            .into_iter()
            .filter_map(|(name, t)| if name == key { Some((name, change(&t)?)) } else { Some((name, t)) })
            .collect();
        Tensor::write_safetensors(&kept, self.tensors()).unwrap();
        self
    }

    fn run(&self) -> CaseReport {
        run_case(&self.json())
    }

    fn problem(&self) -> String {
        self.run().result.unwrap_err()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn damaged_and_unknown_cases_are_reported() {
    assert!(Copy::new("whole").run().pass());

    let copy = Copy::new("json");
    cut(&copy.json());
    assert!(copy.problem().contains("case.json"));

    let copy = Copy::new("tensors");
    cut(&copy.tensors());
    assert!(copy.problem().contains("case.safetensors"));
    std::fs::remove_file(copy.tensors()).unwrap();
    assert!(copy.problem().contains("case.safetensors"));

    let copy = Copy::new("key");
    assert!(copy.tensor("in/x", |_| None).problem().contains("in/x"));

    let copy = Copy::new("entry");
    assert!(copy.header(|header| header["entry"] = json!("nonsense")).problem().contains("nonsense"));

    let copy = Copy::new("config");
    assert!(copy.header(|header| header["config"]["odd"] = json!(1)).problem().contains("odd"));

    let copy = Copy::new("nothing");
    assert!(copy.header(|header| header["outputs"] = json!({})).problem().contains("no outputs"));

    let copy = Copy::new("gradients");
    let key = |header: &mut Value| header["gradients"] = json!({"x": {"rtol": "wide"}});
    assert!(copy.header(key).problem().contains("gradient x"));

    let copy = Copy::new("output");
    let report = copy.tensor("out/y", |_| None).run();
    assert!(!report.pass());
    assert!(report.result.unwrap().iter().any(|check| check.verdict().contains("no such tensor")));

    // All of them in one folder: counted by entry, and the run goes on.
    let copy = Copy::new("folder");
    std::fs::write(copy.folder.join("broken.json"), "{").unwrap();
    let reports = verify(&copy.folder, |_, _, _| ()).unwrap();
    assert_eq!(reports.iter().filter(|report| report.pass()).count(), 1);
    let table = summary_table(&reports);
    assert!(table.contains("(unreadable)") && table.contains("cosmos.resblock"), "{table}");
    assert!(verify(Path::new("/nowhere"), |_, _, _| ()).is_err());
}

#[test]
fn what_is_not_a_number_never_passes() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        // Theirs alone; then ours, too, for weights and inputs of it.
        for (name, keys) in [("theirs", vec!["out/y"]), ("both", vec!["in/x", "out/y"])] {
            let copy = Copy::new(&format!("{value}-{name}"));
            for key in keys {
                copy.tensor(key, |tensor| Some(tensor.full_like(value)));
            }
            let report = copy.run();
            assert!(!report.pass(), "{value} {name}: {report:?}");
        }
    }
}

#[test]
fn a_gradient_may_pass_by_its_own_tolerance_and_says_so() {
    let case = reference::case::Case::load(&Copy::new("load").json()).unwrap();
    let (key, own) = case.gradients.iter().next().unwrap();
    let (general, sizes) = (&case.outputs[key], case.tensor(key).unwrap().abs());
    let (smallest, largest) = (sizes.min().double_value(&[]), sizes.max().double_value(&[]));
    // Too far for the smallest element by the general tolerance.
    let beyond_general = 0.5 * own.atol;
    assert!(beyond_general > general.atol + general.rtol * smallest);
    let moved = |by: f64| {
        let copy = Copy::new("moved");
        copy.tensor(key, |tensor| Some(tensor + by)).run()
    };
    let report = moved(beyond_general);
    assert!(report.pass(), "{report:?}");
    assert_eq!(report.by_own_tolerance(), 1);
    assert!(summary_table(&[report]).contains("1 of the gradients"));
    assert!(!moved(2.0 * (own.atol + own.rtol * largest)).pass());

    // Without a tolerance of its own, and for what is no gradient, the general one alone counts.
    let copy = Copy::new("bare");
    copy.header(|header| drop(header.as_object_mut().unwrap().remove("gradients")));
    assert!(!copy.tensor(key, |tensor| Some(tensor + beyond_general)).run().pass());
    let copy = Copy::new("forward");
    copy.header(|header| header["gradients"]["y"] = json!({"rtol": 1.0, "atol": 1.0}));
    assert!(!copy.tensor("out/y", |tensor| Some(tensor + 0.1)).run().pass());
}
