//! LPIPS, I3D and FVD with random weights: structure, what is refused, bad files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use metrics::NamedTensors;
use metrics::frechet::FrechetRule;
use metrics::fvd::{ClipFeatures, Preprocessing, fvd};
use metrics::i3d::{I3d, I3dConfig};
use metrics::lpips::{Lpips, LpipsConfig, Net};
use tch::{Device, Kind, Tensor};
use video_core::Error;

use super::{noise, number, refusal, video};

const NETS: [Net; 3] = [Net::Alex, Net::Vgg, Net::Squeeze];

type Shapes = Vec<(String, Vec<i64>)>;

/// Small random tensors; what batch norms multiply by stays positive.
fn random(shapes: &Shapes) -> BTreeMap<String, Tensor> {
    let tensor = |(seed, (name, shape)): (usize, &(String, Vec<i64>))| {
        let noise = noise(shape, seed as u64);
        let fan_in: i64 = shape.iter().skip(1).product();
        let positive = name.ends_with("running_var") || name.contains("bn.weight") || name.starts_with("lin");
        (name.clone(), if positive { noise + 0.5 } else { (noise - 0.5) * (6.0 / fan_in as f64).sqrt() })
    };
    shapes.iter().enumerate().map(tensor).collect()
}

fn count(shapes: &Shapes, counted: impl Fn(&str) -> bool) -> i64 {
    shapes.iter().filter(|(name, _)| counted(name)).map(|(_, shape)| shape.iter().product::<i64>()).sum()
}

fn small_lpips(net: Net) -> Lpips {
    let config = LpipsConfig { net, width_div: 8, ..LpipsConfig::default() };
    let backbone = NamedTensors::new("backbone", random(&config.backbone_tensors().unwrap()));
    let heads = NamedTensors::new("heads", random(&config.head_tensors().unwrap()));
    Lpips::new(config, &backbone, &heads, Device::Cpu).unwrap()
}

const SMALL_I3D: I3dConfig =
    I3dConfig { num_classes: 6, avg_pool_kernel: [2, 7, 7], bn_eps: 1e-5, width_div: 16 };

fn small_i3d() -> I3d {
    let weights = NamedTensors::new("weights", random(&SMALL_I3D.tensors().unwrap()));
    I3d::new(SMALL_I3D, &weights, Device::Cpu).unwrap()
}

/// A safetensors file in a folder of its own.
fn file(folder: &tempfile::TempDir, name: &str, tensors: BTreeMap<String, Tensor>) -> PathBuf {
    let path = folder.path().join(name);
    let tensors: Vec<(String, Tensor)> = tensors.into_iter().collect();
    Tensor::write_safetensors(&tensors, &path).unwrap();
    path
}

#[test]
fn published_sizes() {
    for (net, backbone, heads) in
        [(Net::Alex, 2_469_696, 1_152), (Net::Vgg, 14_714_688, 1_472), (Net::Squeeze, 722_496, 2_240)]
    {
        let config = LpipsConfig { net, ..LpipsConfig::default() };
        assert_eq!(count(&config.backbone_tensors().unwrap(), |_| true), backbone);
        assert_eq!(count(&config.head_tensors().unwrap(), |_| true), heads);
    }
    for (num_classes, parameters) in [(400, 12_697_264), (600, 12_902_264)] {
        let shapes = I3dConfig { num_classes, ..I3dConfig::default() }.tensors().unwrap();
        assert_eq!(count(&shapes, |name| !name.contains("running")), parameters);
        assert_eq!(count(&shapes, |name| name.contains("running")), 14_560);
    }
}

#[test]
fn lpips_is_a_distance_with_gradients() {
    for net in NETS {
        let lpips = small_lpips(net);
        let side = net.smallest_side();
        let images = |seed| noise(&[2, 3, side, side + 5], seed) * 2.0 - 1.0;
        let (a, b) = (images(1), images(2));
        assert!(number(&lpips.distance(&a, &a).unwrap().max()) == 0.0);
        let there = lpips.distance(&a, &b).unwrap();
        assert_eq!(there.size(), [2]);
        assert!(number(&there.min()) > 0.0);
        assert!(number(&(&there - lpips.distance(&b, &a).unwrap()).abs().max()) < 1e-6);
        assert!(
            number(
                &(lpips.per_tap(&a, &b).unwrap().sum_dim_intlist(1, false, Kind::Float) - &there).abs().max()
            ) < 1e-6
        );
        assert_eq!(lpips.spatial(&a, &b).unwrap().size(), [2, 1, side, side + 5]);
        let ours = a.copy().set_requires_grad(true);
        lpips.distance(&ours, &b).unwrap().sum(Kind::Float).backward();
        assert!(number(&ours.grad().abs().sum(Kind::Float)) > 0.0);
        // Video as frames one by one.
        let clip = |images: &Tensor| images.unsqueeze(0).transpose(1, 2);
        let mean = number(&lpips.video_distance(&clip(&a), &clip(&b)).unwrap());
        assert!((mean - number(&there.mean(Kind::Float))).abs() < 1e-6);
    }
}

#[test]
fn lpips_gradients_survive_silent_features() {
    // Weights of zero: no feature is active anywhere, and the root of zero has no derivative.
    let config = LpipsConfig { net: Net::Vgg, width_div: 16, ..LpipsConfig::default() };
    let zeros = |shapes: Shapes| {
        let zero = |shape: Vec<i64>| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        NamedTensors::new("zeros", shapes.into_iter().map(|(name, shape)| (name, zero(shape))).collect())
    };
    let backbone = zeros(config.backbone_tensors().unwrap());
    let heads = NamedTensors::new("heads", random(&config.head_tensors().unwrap()));
    let lpips = Lpips::new(config, &backbone, &heads, Device::Cpu).unwrap();
    let image = noise(&[1, 3, 16, 16], 1);
    let ours = image.copy().set_requires_grad(true);
    lpips.distance(&ours, &(image * 0.5)).unwrap().sum(Kind::Float).backward();
    assert_eq!(number(&ours.grad().abs().sum(Kind::Float)), 0.0);
}

#[test]
fn lpips_refuses_what_it_cannot_see() {
    let lpips = small_lpips(Net::Alex);
    let image = noise(&[1, 3, 40, 40], 1);
    for bad in [image.narrow(2, 0, 30), image.narrow(1, 0, 1), image.get(0), Tensor::from(1.0)] {
        assert!(matches!(lpips.distance(&bad, &bad), Err(Error::Shape { .. })));
        assert!(matches!(lpips.spatial(&bad, &bad), Err(Error::Shape { .. })));
    }
    assert!(matches!(lpips.distance(&image, &image.narrow(2, 0, 35)), Err(Error::Shape { .. })));
    assert!(refusal(lpips.distance(&image.to_kind(Kind::Int64), &image)).contains("float"));
    let clip = video([1, 3, 2, 40, 40], 2);
    assert!(refusal(lpips.video_distance(&(&clip * 255.0), &clip)).contains("values in [-1, 1]"));
}

#[test]
fn lpips_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let config = LpipsConfig { net: Net::Squeeze, ..LpipsConfig::default() };
    let whole = || random(&config.backbone_tensors().unwrap());
    let mut with_classifier = whole();
    with_classifier.insert("classifier.1.weight".into(), noise(&[4, 2], 1));
    let backbone = file(&folder, "backbone", with_classifier);
    let heads = file(&folder, "heads", random(&config.head_tensors().unwrap()));
    let load = |backbone: &PathBuf, heads: &PathBuf| Lpips::load(Net::Squeeze, backbone, heads, Device::Cpu);
    assert!(load(&backbone, &heads).is_ok());

    let absent = folder.path().join("absent");
    assert!(matches!(load(&absent, &heads), Err(Error::Io { .. })));
    assert!(matches!(load(&backbone, &absent), Err(Error::Io { .. })));
    assert!(load(&folder.path().to_path_buf(), &heads).is_err());

    let bytes = std::fs::read(&backbone).unwrap();
    for (name, kept) in [("empty", 0), ("header", 100), ("cut", bytes.len() - 4)] {
        let cut = folder.path().join(name);
        std::fs::write(&cut, &bytes[..kept]).unwrap();
        assert!(refusal(load(&cut, &heads)).contains("a whole safetensors file"), "{name}");
    }

    let mut lacking = whole();
    lacking.remove("features.9.squeeze.weight");
    let message = refusal(load(&file(&folder, "lacking", lacking), &heads));
    assert!(message.contains("features.9.squeeze.weight") && message.contains("missing"), "{message}");
    assert!(message.contains("[48, 256, 1, 1]"), "{message}");

    let mut misshapen = whole();
    misshapen.insert("features.0.weight".into(), noise(&[64, 3, 7, 7], 1));
    let message = refusal(load(&file(&folder, "misshapen", misshapen), &heads));
    assert!(message.contains("[64, 3, 7, 7]") && message.contains("[64, 3, 3, 3]"), "{message}");

    let mut other = whole();
    other.insert("features.13.weight".into(), noise(&[1], 1));
    assert!(refusal(load(&file(&folder, "other", other), &heads)).contains("features.13.weight"));

    let mut poisoned = whole();
    poisoned.insert("features.0.bias".into(), noise(&[64], 1) / 0.0);
    assert!(refusal(load(&file(&folder, "poisoned", poisoned), &heads)).contains("not finite"));

    // The heads of another net: the first has the same shape, a later one has not.
    let vgg = LpipsConfig { net: Net::Vgg, ..LpipsConfig::default() };
    let heads = file(&folder, "vgg heads", random(&vgg.head_tensors().unwrap()));
    let message = refusal(load(&backbone, &heads));
    assert!(message.contains("lin3.model.1.weight") && message.contains("[1, 384, 1, 1]"), "{message}");
}

#[test]
fn i3d_gives_one_row_a_clip() {
    let i3d = small_i3d();
    let clips = video([2, 3, 9, 193, 200], 1);
    let logits = i3d.logits(&clips).unwrap();
    assert_eq!(logits.size(), [2, 6]);
    let alone = i3d.logits(&clips.narrow(0, 1, 1)).unwrap();
    assert!(number(&(logits.narrow(0, 1, 1) - alone).abs().max()) < 1e-4);

    assert!(refusal(i3d.logits(&clips.narrow(2, 0, 8))).contains("at least 9 frames of 193 × 193"));
    assert!(refusal(i3d.logits(&clips.narrow(3, 0, 192))).contains("at least 9 frames of 193 × 193"));
    assert!(refusal(i3d.logits(&video([1, 3, 9, 225, 200], 1))).contains("at most 224 × 224"));
    assert!(refusal(i3d.logits(&clips.narrow(1, 0, 1))).contains("3 channels"));
    assert!(refusal(i3d.logits(&(&clips * 255.0))).contains("values in [-1, 1]"));
    assert!(refusal(i3d.classify(&clips)).contains("[B, 64, T, H, W]"));
    for bad in [
        I3dConfig { num_classes: 0, ..SMALL_I3D },
        I3dConfig { width_div: 17, ..SMALL_I3D },
        I3dConfig { bn_eps: f64::NAN, ..SMALL_I3D },
        I3dConfig { avg_pool_kernel: [0, 7, 7], ..SMALL_I3D },
    ] {
        assert!(matches!(bad.tensors(), Err(Error::Config { .. })));
    }
}

#[test]
fn i3d_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let load = |path: &PathBuf| I3d::load(path, Device::Cpu);
    assert!(matches!(load(&folder.path().join("absent")), Err(Error::Io { .. })));
    // A file for a smaller network, which also holds the counters that PyTorch's batch norms keep.
    let mut small = random(&SMALL_I3D.tensors().unwrap());
    small.insert("Conv3d_1a_7x7.bn.num_batches_tracked".into(), Tensor::from(5i64));
    let weights =
        NamedTensors::new("weights", small.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect());
    assert!(I3d::new(SMALL_I3D, &weights, Device::Cpu).is_ok());
    let message = refusal(load(&file(&folder, "small", small)));
    assert!(
        message.contains("Conv3d_1a_7x7.conv3d.weight") && message.contains("[4, 3, 7, 7, 7]"),
        "{message}"
    );
    assert!(message.contains("[64, 3, 7, 7, 7]"), "{message}");
    let mut extended = random(&SMALL_I3D.tensors().unwrap());
    extended.insert("Mixed_6a.b0.conv3d.weight".into(), noise(&[1], 1));
    let weights = NamedTensors::new("weights", extended);
    assert!(refusal(I3d::new(SMALL_I3D, &weights, Device::Cpu)).contains("Mixed_6a"));
}

#[test]
fn eight_bit_pixels_pass_truncation_unchanged() {
    // All levels, in a frame of I3D's size, by way of [-1, 1] as a decoder gives them.
    let levels =
        Tensor::arange(224 * 224, (Kind::Float, Device::Cpu)).remainder(256.0).view([1, 1, 1, 224, 224]);
    let clip = &levels / 127.5 - 1.0;
    for convention in
        [Preprocessing::Videogpt, Preprocessing::StyleganV, Preprocessing::Tf2, Preprocessing::Tf1Legacy]
    {
        let input = convention.prepare(&clip).unwrap();
        assert_eq!(input.size(), [1, 3, 1, 224, 224]);
        assert!(number(&(input - &clip).abs().max()) < 1e-5, "{convention}");
    }
}

#[test]
fn preprocessing_refuses_other_ranges_and_channels() {
    let clip = video([1, 3, 1, 8, 8], 1);
    for convention in [Preprocessing::Videogpt, Preprocessing::Tf2] {
        assert!(refusal(convention.prepare(&(&clip * 127.5))).contains("values in [-1, 1]"));
        assert!(refusal(convention.prepare_unit(&clip, 8)).contains("values in [0, 1]"));
        assert!(refusal(convention.prepare(&clip.narrow(1, 0, 2))).contains("1 or 3 channels"));
        assert!(refusal(convention.prepare_unit(&clip.abs(), 0)).contains("resolution"));
    }
}

#[test]
fn fvd_of_sets_of_clips() {
    let i3d = small_i3d();
    let clips =
        |seed: u64| -> Vec<Tensor> { (0..3u64).map(|i| video([1, 1, 9, 12, 16], seed + i).get(0)).collect() };
    let (ours, theirs) = (clips(1), clips(50));
    let convention = Preprocessing::StyleganV;
    let same = fvd(&i3d, &ours, &ours, convention).unwrap();
    let other = fvd(&i3d, &ours, &theirs, convention).unwrap();
    assert!(same.abs() < 1e-4 && other > same, "{same} {other}");

    let mut features =
        [ClipFeatures::new(&i3d, convention).unwrap(), ClipFeatures::new(&i3d, convention).unwrap()];
    for (set, clips) in features.iter_mut().zip([&theirs, &ours]) {
        clips.iter().for_each(|clip| set.add(&i3d, clip).unwrap());
    }
    assert_eq!(features[0].clips(), 3);
    let gathered = features[0].distance(&features[1], FrechetRule::default()).unwrap();
    assert!((gathered.distance - other).abs() < 1e-9);

    // Gray is the same as three equal channels.
    let colour = ours[0].expand([3, 9, 12, 16], false);
    let prepared = |clip: &Tensor| convention.prepare(&clip.unsqueeze(0)).unwrap();
    assert_eq!(prepared(&ours[0]), prepared(&colour));

    assert!(refusal(fvd(&i3d, &ours, &[], convention)).contains("0 and 3 samples"));
    assert!(refusal(fvd(&i3d, &ours, &[ours[0].unsqueeze(0)], convention)).contains("[C, T, H, W]"));
    let differently = ClipFeatures::new(&i3d, Preprocessing::Tf2).unwrap();
    assert!(refusal(features[0].distance(&differently, FrechetRule::default())).contains("tf2"));
}
