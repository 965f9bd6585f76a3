use perceiver_ar::{
    InitialQuery, LossConfig, MemoryKind, PerceiverAr, PerceiverArConfig, PositionEncoding,
    PositionEncodingType, Sampler, Scheme, Sequence, TrainDraws, count_positions, random_copy_task, shift,
};
use proptest::prelude::*;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn, no_grad};
use video_core::Error;

use crate::distance;

const CONTEXT: i64 = 20;
const LATENTS: i64 = 6;
const VOCABULARY: i64 = 13;

fn tiny() -> PerceiverArConfig {
    PerceiverArConfig {
        num_classes: VOCABULARY,
        max_context_length: CONTEXT,
        max_wavelength: CONTEXT,
        use_positions_from_data: true,
        input_embed_dim: 16,
        num_z_channels: 24,
        z_index_dim: LATENTS,
        num_transformers_per_block: 2,
        num_cross_attend_heads: 2,
        num_transformer_heads: 2,
        dropout_prob: 0.0,
        ..PerceiverArConfig::default()
    }
}

/// Forms that can decode with a memory.
fn forms() -> [PerceiverArConfig; 4] {
    let absolute = PerceiverArConfig {
        position_encoding_type: PositionEncodingType::Absolute,
        input_idx_size: vec![CONTEXT + 2],
        ..tiny()
    };
    [
        tiny(),
        PerceiverArConfig {
            initial_query_offsetting: true,
            additional_cross_attend_after_layers: vec![0],
            ..tiny()
        },
        PerceiverArConfig { position_encoding: PositionEncoding::Fourier, ..absolute.clone() },
        PerceiverArConfig {
            initial_query_embed_style: InitialQuery::Learned,
            share_learned_initial_query: true,
            ..absolute
        },
    ]
}

/// A model whose head is not zero, as it is at first.
fn build(config: &PerceiverArConfig) -> (nn::VarStore, PerceiverAr) {
    tch::manual_seed(3);
    let variables = nn::VarStore::new(Device::Cpu);
    let model = PerceiverAr::new(&variables.root(), config).unwrap();
    no_grad(|| drop(variables.variables()["logits.weight"].shallow_clone().normal_(0.0, 0.5)));
    (variables, model)
}

fn random_ids(batch: i64, slots: i64) -> Tensor {
    Tensor::randint_low(3, VOCABULARY, [batch, slots], (Kind::Int64, Device::Cpu))
}

fn logits(model: &PerceiverAr, ids: &Tensor, latents: i64) -> Tensor {
    let positions = count_positions(ids.size()[0], ids.size()[1], Device::Cpu);
    let sequence = Sequence { ids, positions: Some(&positions) };
    no_grad(|| model.forward(sequence, Some(latents), None)).unwrap().logits
}

/// The logits of all latents, the inputs fed in pieces: those before the first latent, then `cuts` again and again.
fn in_pieces(model: &PerceiverAr, ids: &Tensor, latents: i64, cuts: &[i64], kind: MemoryKind) -> Tensor {
    let (batch, slots) = (ids.size()[0], ids.size()[1]);
    let positions = count_positions(batch, slots, Device::Cpu);
    let mut memory = model.memory(kind).unwrap();
    let (mut at, mut pieces) = (0, Vec::new());
    for cut in cuts.iter().cycle() {
        if at == slots {
            break;
        }
        let before = if at == 0 { slots - latents } else { 0 };
        let count = (*cut).min(slots - at - before);
        let cut = |x: &Tensor| x.narrow(1, at, before + count);
        let sequence = (cut(ids), cut(&positions));
        let sequence = Sequence { ids: &sequence.0, positions: Some(&sequence.1) };
        pieces.push(model.push(&mut memory, sequence, count).unwrap());
        at += before + count;
    }
    Tensor::cat(&pieces, 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn cached_is_uncached_in_any_pieces(
        form in 0usize..4,
        latents in 1i64..9,
        fixed in any::<bool>(),
        cuts in prop::collection::vec(1i64..5, 1..5),
    ) {
        let _alone = crate::alone();
        let (_variables, model) = build(&forms()[form]);
        let ids = random_ids(2, 15);
        let kind =
            if fixed { MemoryKind::FixedSize { inputs: 15, latents: 9 } } else { MemoryKind::Growing };
        let difference =
            distance(&in_pieces(&model, &ids, latents, &cuts, kind), &logits(&model, &ids, latents));
        prop_assert!(difference < 1e-5, "{}", difference);
    }
}

#[test]
fn no_latent_sees_later_inputs_and_all_see_the_first() {
    let _alone = crate::alone();
    let several = PerceiverArConfig { num_latents_per_position: 2, ..tiny() };
    for (config, per_position) in forms().into_iter().map(|form| (form, 1)).chain([(several, 2)]) {
        let (_variables, model) = build(&config);
        let ids = random_ids(1, 15);
        let before = logits(&model, &ids, LATENTS * per_position);
        assert_eq!(before.size(), [1, LATENTS, VOCABULARY]);
        for changed in [0, 10, 14] {
            let other = ids.copy();
            let token = other.select(1, changed);
            token.shallow_clone().copy_(&((&token - 2).remainder(VOCABULARY - 3) + 3));
            let difference =
                (logits(&model, &other, LATENTS * per_position) - &before).abs().amax([0, 2], false);
            for latent in 0..LATENTS {
                let moved = difference.double_value(&[latent]) > 1e-7;
                assert_eq!(moved, 15 - LATENTS + latent >= changed, "{changed} {latent} {difference:?}");
            }
        }
    }
}

#[test]
fn padding_changes_nothing() {
    let _alone = crate::alone();
    for config in [tiny(), PerceiverArConfig { use_positions_from_data: false, ..tiny() }] {
        let (_variables, model) = build(&config);
        let ids = random_ids(2, 12);
        let padded = ids.constant_pad_nd([0, 5]);
        let difference = distance(&logits(&model, &padded, LATENTS), &logits(&model, &ids, LATENTS));
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn a_memory_of_fixed_size_forgets() {
    let _alone = crate::alone();
    let (_variables, model) = build(&tiny());
    let ids = random_ids(1, 18);
    let other = Tensor::cat(&[random_ids(1, 1), ids.narrow(1, 1, 17)], 1);
    let last = |ids: &Tensor| {
        let kind = MemoryKind::FixedSize { inputs: 4, latents: 2 };
        in_pieces(&model, ids, 18, &[1], kind).select(1, -1)
    };
    // Latents carry what they saw as far as there are layers, then no further.
    assert_eq!(last(&ids), last(&other));
}

#[test]
fn strided_sampling_agrees_with_recomputing_while_histories_do() {
    let _alone = crate::alone();
    let (_variables, model) = build(&PerceiverArConfig { z_index_dim: 4, ..tiny() });
    let events = random_ids(2, 6).constant_pad_nd([0, 15]);
    let positions = count_positions(2, 21, Device::Cpu);
    let scheme = Scheme::Strided { latents: 8, refill: 4, prompt: 4 };
    let mut strided = Sampler::new(&model, &events, Some(&positions), 6, scheme).unwrap();
    let mut computed = 0;
    while !strided.is_done() {
        let latents = 4 + (strided.position() - 6) % 5;
        let known = strided.events().narrow(1, 0, strided.position());
        let logits_now = strided.logits().unwrap();
        let exact = logits(&model, &known, latents).select(1, -1);
        let difference = distance(&logits_now, &exact);
        assert!(difference < 1e-5, "{computed}: {difference}");
        strided.write(&(logits_now.narrow(1, 3, VOCABULARY - 3).argmax(-1, false) + 3)).unwrap();
        computed += 1;
    }
    assert_eq!(computed, 15);
    assert!(strided.logits().is_err());
}

#[test]
fn a_short_copy_task_is_learnt() {
    let _alone = crate::alone();
    tch::manual_seed(0);
    let config = PerceiverArConfig {
        num_classes: 259,
        max_context_length: 10,
        max_wavelength: 10,
        z_index_dim: 5,
        input_embed_dim: 32,
        num_z_channels: 32,
        encoder_dropout_prob: 0.0,
        ..tiny()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let model = PerceiverAr::new(&variables.root(), &config).unwrap();
    let mut optimizer = nn::Adam::default().build(&variables, 5e-3).unwrap();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let events = random_copy_task(16, 10, true, Device::Cpu).unwrap();
        let (inputs, targets) = shift(&events.ids.remainder(8));
        let positions = events.positions.narrow(1, 0, 9);
        let sequence = Sequence { ids: &inputs, positions: Some(&positions) };
        let draws = TrainDraws::draw(&config, 16, 9, 5, Device::Cpu);
        let loss = model.training_loss(sequence, &targets, &draws, LossConfig::default()).unwrap();
        losses.push((&loss.total / &loss.num_events).double_value(&[]));
        optimizer.backward_step(&(loss.total / loss.num_events));
    }
    assert!(losses[59] < 0.4 * losses[0], "{losses:?}");
}

#[test]
fn training_draws_have_the_shapes_and_shares_of_the_config() {
    let _alone = crate::alone();
    let config = PerceiverArConfig {
        latent_dropout_prob: 0.3,
        encoder_dropout_prob: 0.5,
        train_input_positions: 12,
        dropout_prob: 0.1,
        ..tiny()
    };
    let (_variables, model) = build(&config);
    let (ids, positions) = (random_ids(2, 18), count_positions(2, 18, Device::Cpu));
    let draws = TrainDraws::draw(&config, 2, 18, LATENTS, Device::Cpu);
    let sequence = Sequence { ids: &ids, positions: Some(&positions) };
    let predictions = model.forward(sequence, None, Some(&draws)).unwrap();
    assert_eq!(predictions.encoder_mask.unwrap().size(), [2, 1, LATENTS, 12]);
    assert!(predictions.logits.isfinite().all().int64_value(&[]) == 1);
    let wrong = TrainDraws { encoder_keep: Some(Tensor::ones([2, 18], (Kind::Bool, Device::Cpu))), ..draws };
    assert!(matches!(model.forward(sequence, None, Some(&wrong)), Err(Error::Shape { .. })));
}

#[test]
fn inputs_are_dropped_before_a_single_latent_too() {
    let _alone = crate::alone();
    let (_variables, model) = build(&tiny());
    let (ids, positions) = (random_ids(1, 9), count_positions(1, 9, Device::Cpu));
    let logits = |ids: &Tensor, keep: &Tensor| {
        let draws = TrainDraws { encoder_keep: Some(keep.shallow_clone()), ..TrainDraws::default() };
        let sequence = Sequence { ids, positions: Some(&positions) };
        no_grad(|| model.forward(sequence, Some(1), Some(&draws))).unwrap().logits
    };
    let keep = Tensor::arange(9, (Kind::Int64, Device::Cpu)).ne(4).unsqueeze(0);
    let other = ids.copy();
    let _ = other.narrow(1, 4, 1).fill_(3 + (ids.int64_value(&[0, 4]) - 2) % (VOCABULARY - 3));
    assert_eq!(logits(&ids, &keep), logits(&other, &keep));
    assert_ne!(logits(&ids, &keep.ones_like()), logits(&other, &keep.ones_like()));
}

#[test]
fn the_published_sizes_have_the_published_number_of_parameters() {
    let _alone = crate::alone();
    let base = PerceiverArConfig::default();
    let variables = nn::VarStore::new(Device::Cpu);
    let _model = PerceiverAr::new(&variables.root(), &base).unwrap();
    let count: usize = variables.variables().values().map(Tensor::numel).sum();
    assert_eq!(count, 165_335_299);
    PerceiverArConfig::random_mirrored_131072().validate().unwrap();
    PerceiverArConfig::imagenet_w_positions().validate().unwrap();
}

#[test]
fn what_cannot_be_is_refused() {
    let _alone = crate::alone();
    let path = nn::VarStore::new(Device::Cpu);
    let absolute = || PerceiverArConfig { position_encoding_type: PositionEncodingType::Absolute, ..tiny() };
    for (config, field) in [
        (PerceiverArConfig { num_classes: 2, ..tiny() }, "num_classes"),
        (PerceiverArConfig { z_index_dim: 21, ..tiny() }, "z_index_dim"),
        (PerceiverArConfig { num_latents_per_position: 4, ..tiny() }, "z_index_dim"),
        (PerceiverArConfig { num_transformer_heads: 5, ..tiny() }, "num_transformer_heads"),
        (PerceiverArConfig { max_wavelength: 19, ..tiny() }, "max_wavelength"),
        (PerceiverArConfig { fraction_to_rotate: 0.0, ..tiny() }, "fraction_to_rotate"),
        (PerceiverArConfig { dropout_prob: 1.0, ..tiny() }, "dropout_prob"),
        (PerceiverArConfig { input_idx_size: vec![], ..tiny() }, "input_idx_size"),
        (absolute(), "input_idx_size"),
        (
            PerceiverArConfig { initial_query_offsetting: true, input_idx_size: vec![30], ..absolute() },
            "initial_query_offsetting",
        ),
        (
            PerceiverArConfig { additional_cross_attend_after_layers: vec![2], ..tiny() },
            "additional_cross_attend_after_layers",
        ),
    ] {
        let refused = PerceiverAr::new(&path.root(), &config).unwrap_err();
        assert!(matches!(&refused, Error::Config { field: found, .. } if found == field), "{refused}");
    }

    let (_variables, model) = build(&PerceiverArConfig { input_idx_size: vec![CONTEXT + 2], ..absolute() });
    let (ids, positions) = (random_ids(1, 8), count_positions(1, 8, Device::Cpu));
    let good = Sequence { ids: &ids, positions: Some(&positions) };
    let refused =
        |sequence: Sequence<'_>, latents: i64| model.forward(sequence, Some(latents), None).unwrap_err();
    // More latents than positions; positions missing, or without a row; ids outside the vocabulary; too long a context.
    assert!(matches!(refused(good, 9), Error::Config { .. }));
    assert!(matches!(refused(Sequence { positions: None, ..good }, 2), Error::Input { .. }));
    let far = &positions + CONTEXT;
    assert!(matches!(refused(Sequence { positions: Some(&far), ..good }, 2), Error::Input { .. }));
    let beyond = &ids + VOCABULARY;
    assert!(matches!(refused(Sequence { ids: &beyond, ..good }, 2), Error::Input { .. }));
    let long = random_ids(1, CONTEXT + 2);
    assert!(matches!(refused(Sequence { ids: &long, ..good }, 2), Error::Shape { .. }));

    // A memory: another batch, more than it holds, a model that cannot have one.
    let mut memory = model.memory(MemoryKind::FixedSize { inputs: 9, latents: 2 }).unwrap();
    drop(model.push(&mut memory, good, 1).unwrap());
    let (two, places) = (random_ids(2, 1), count_positions(2, 1, Device::Cpu));
    let two = Sequence { ids: &two, positions: Some(&places) };
    assert!(matches!(model.push(&mut memory, two, 1), Err(Error::Shape { .. })));
    assert!(matches!(model.push(&mut memory, good, 3), Err(Error::Input { .. })));
    assert!(matches!(model.push(&mut memory, good, 9), Err(Error::Config { .. })));
    let (_variables, counting) = build(&PerceiverArConfig { use_positions_from_data: false, ..tiny() });
    assert!(matches!(counting.memory(MemoryKind::Growing), Err(Error::Unsupported { .. })));

    // A sampler: a prompt longer than the context, no start, a stride without progress.
    let events = random_ids(1, CONTEXT + 1);
    let all = count_positions(1, CONTEXT + 1, Device::Cpu);
    let begin =
        |events: &Tensor, start, scheme| Sampler::new(&model, events, Some(&all), start, scheme).err();
    assert!(begin(&events, CONTEXT + 2, Scheme::Recompute).is_some());
    assert!(begin(&events, 0, Scheme::Recompute).is_some());
    assert!(begin(&random_ids(1, CONTEXT + 2), 1, Scheme::Recompute).is_some());
    assert!(begin(&events, 1, Scheme::Strided { latents: 4, refill: 4, prompt: 1 }).is_some());
}
