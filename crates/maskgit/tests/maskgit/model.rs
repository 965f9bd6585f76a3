use maskgit::mask::{MASK, MaskRule, mask_by_score};
use maskgit::vqgan::downsample_average;
use maskgit::{
    BidirectionalTransformer, Columns, DecodeOptions, TrainingSequence, TransformerConfig, decode,
};
use tch::{Device, Kind, Tensor, nn};

use crate::distance;

fn tiny() -> TransformerConfig {
    TransformerConfig {
        codebook_size: 64,
        num_special: 4,
        factors: Vec::new(),
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 40,
        max_position_embeddings: 16,
        num_segments: 0,
        dropout: 0.1,
    }
}

fn build(config: &TransformerConfig) -> (nn::VarStore, BidirectionalTransformer) {
    let variables = nn::VarStore::new(Device::Cpu);
    let model = BidirectionalTransformer::new(&variables.root(), config).unwrap();
    (variables, model)
}

fn ids(batch: i64) -> Tensor {
    Tensor::randint(64, [batch, 16], (Kind::Int64, Device::Cpu))
}

/// The loss with logits at every position, and weights afterwards.
fn full_loss(model: &BidirectionalTransformer, sequence: &TrainingSequence<'_>, smoothing: f64) -> Tensor {
    let rows = Tensor::arange(sequence.inputs.numel() as i64, (Kind::Int64, Device::Cpu));
    let hidden = model.hidden(sequence.inputs, None, false).unwrap();
    let logits = model.logits(&hidden, &rows, Columns::Codes).unwrap();
    let cross_entropy =
        logits.cross_entropy(&sequence.targets.reshape([-1]), smoothing).reshape(sequence.weights.size())
            * sequence.weights;
    let sum = |x: &Tensor| x.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    (sum(&cross_entropy) / sum(sequence.weights)).mean(Kind::Float)
}

#[test]
fn the_head_at_masked_positions_alone_gives_the_loss_and_gradients_of_the_full_one() {
    let _alone = crate::alone();
    for factors in [vec![], vec![8, 8], vec![4, 2, 8]] {
        let (variables, model) = build(&TransformerConfig { factors, ..tiny() });
        let ids = ids(3);
        let grid = ids.view([3, 1, 4, 4]);
        let scores = grid.to_kind(Kind::Float).rand_like();
        let masked = mask_by_score(&grid, &scores, &[0.2, 0.5, 0.9], MaskRule::default()).unwrap();
        let inputs = masked.inputs.flatten(1, -1);
        let weights = inputs.eq(MASK).to_kind(Kind::Float);
        let sequence =
            TrainingSequence { inputs: &inputs, segment_ids: None, targets: &ids, weights: &weights };

        let gradients = |loss: &Tensor| -> Vec<Tensor> {
            let parameters = variables.trainable_variables();
            Tensor::run_backward(&[loss], &parameters, false, false)
        };
        let (part, full) =
            (model.loss(&sequence, Columns::Codes, 0.1, false).unwrap(), full_loss(&model, &sequence, 0.1));
        assert!(distance(&part, &full) < 1e-5);
        for (part, full) in gradients(&part).iter().zip(&gradients(&full)) {
            assert!(distance(part, full) < 1e-6);
        }
    }
}

#[test]
fn a_factorised_vocabulary_is_the_dense_one_whose_logits_are_the_sums() {
    let _alone = crate::alone();
    let (_variables, model) = build(&TransformerConfig { factors: vec![8, 8], ..tiny() });
    let hidden = Tensor::randn([5, 24], (Kind::Float, Device::Cpu)) * 3.0;
    let logits = model.vocabulary().logits(&hidden, Columns::Codes).unwrap();
    let [low, high] = logits.factors() else { panic!("two factors") };
    // id = low + 8 · high.
    let dense = (high.unsqueeze(-1) + low.unsqueeze(-2)).flatten(1, 2);
    let expected = dense.log_softmax(-1, Kind::Float);
    assert!((expected.exp().sum(Kind::Float).double_value(&[]) - 5.0).abs() < 1e-5);
    for id in 0..64 {
        let ids = Tensor::full([5], id, (Kind::Int64, Device::Cpu));
        assert!(distance(&logits.log_probabilities(&ids), &expected.select(1, id)) < 1e-5);
        assert!(distance(&logits.cross_entropy(&ids, 0.0), &-expected.select(1, id)) < 1e-5);
    }
    assert_eq!(logits.most_likely(), dense.argmax(-1, false));
}

#[test]
fn decoding_keeps_what_is_known_and_fills_the_rest() {
    let _alone = crate::alone();
    let (_variables, model) = build(&tiny());
    let known = ids(2);
    let missing = known.to_kind(Kind::Float).rand_like().lt(0.6);
    let input = known.masked_fill(&missing, MASK);
    let options = DecodeOptions { steps: 5, ..Default::default() };
    let decoded = decode(&model, &input, &options, None).unwrap();
    assert!(decoded.ids.min().int64_value(&[]) >= 0 && decoded.ids.max().int64_value(&[]) < 64);
    let kept = missing.logical_not();
    assert_eq!(decoded.ids.masked_select(&kept), known.masked_select(&kept));
    // Nothing is missing: nothing changes.
    assert_eq!(decode(&model, &known, &options, None).unwrap().ids, known);
}

#[test]
fn what_does_not_fit_is_refused() {
    let _alone = crate::alone();
    let bad = |change: fn(&mut TransformerConfig)| {
        let mut config = tiny();
        change(&mut config);
        let variables = nn::VarStore::new(Device::Cpu);
        BidirectionalTransformer::new(&variables.root(), &config).unwrap_err().to_string()
    };
    assert!(bad(|c| c.num_attention_heads = 5).contains("num_attention_heads"));
    assert!(bad(|c| c.factors = vec![8, 9]).contains("factors"));
    assert!(bad(|c| c.codebook_size = 0).contains("codebook_size"));
    assert!(bad(|c| c.dropout = 1.0).contains("dropout"));
    assert!(bad(|c| c.hidden_size = -3).contains("hidden_size"));

    let (_variables, model) = build(&tiny());
    assert!(model.hidden(&Tensor::zeros([1, 17], (Kind::Int64, Device::Cpu)), None, false).is_err());
    assert!(model.hidden(&(ids(1) + 64), None, false).is_err());
    let options = DecodeOptions { steps: 0, ..Default::default() };
    assert!(decode(&model, &ids(1), &options, None).is_err());
}

#[test]
fn halving_keeps_what_there_is_of_an_odd_last_position() {
    let row = Tensor::from_slice(&[1f32, 3.0, 8.0]);
    for shape in [vec![1, 1, 1, 3], vec![1, 1, 1, 1, 3]] {
        let halved = downsample_average(&row.view(shape.as_slice()), true);
        assert_eq!(Vec::<f32>::try_from(halved.view([-1])).unwrap(), [2.0, 8.0]);
    }
}
