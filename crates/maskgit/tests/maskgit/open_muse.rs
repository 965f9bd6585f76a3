use maskgit::open_muse::{
    GuidanceSchedule, OpenMuseConfig, OpenMusePrompt, OpenMuseSampling, OpenMuseTransformer, OpenMuseUVit,
    Temperatures, UVitConditions, UVitConfig,
};
use tch::{Device, Kind, Tensor, nn};

fn sampling(timesteps: i64) -> OpenMuseSampling {
    OpenMuseSampling {
        timesteps,
        temperatures: Temperatures::Compounding(1.5),
        guidance_scale: 2.0,
        guidance_schedule: GuidanceSchedule::Cosine,
    }
}

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

#[test]
fn a_class_or_a_text_fills_a_grid() {
    let _alone = crate::alone();
    for text in [false, true] {
        let config = OpenMuseConfig {
            vocab_size: 24,
            codebook_size: 16,
            num_vq_tokens: 9,
            max_position_embeddings: 10,
            hidden_size: 24,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 32,
            add_cross_attention: text,
            encoder_hidden_size: 6,
            ..OpenMuseConfig::default()
        };
        let variables = nn::VarStore::new(Device::Cpu);
        let model = OpenMuseTransformer::new(&variables.root(), &config).unwrap();
        let ids = Tensor::full([2, 9], model.mask_id(), (Kind::Int64, Device::Cpu));
        let _ = ids.narrow(1, 0, 1).fill_(7);
        let class = Tensor::from_slice(&[0i64, 3]);
        let states = randn(&[2, 4, 6]);
        let prompt = OpenMusePrompt {
            ids: &ids,
            class: (!text).then_some(&class),
            states: text.then_some(&states),
            unconditional: None,
        };
        let made = model.generate(&prompt, &sampling(4), None).unwrap().ids;
        assert!(made.max().int64_value(&[]) < 16);
        assert_eq!(made.select(1, 0), Tensor::from_slice(&[7i64, 7]));
        assert!(model.hidden(&ids, (!text).then_some(&states)).is_err());
        assert!(model.generate(&prompt, &sampling(0), None).is_err());
        assert!(OpenMuseConfig { vocab_size: 16, ..config }.validate().is_err());
    }
}

#[test]
fn the_u_vit_takes_square_grids() {
    let _alone = crate::alone();
    let config = UVitConfig {
        hidden_size: 24,
        cond_embed_dim: 5,
        micro_cond_encode_dim: 4,
        micro_cond_embed_dim: 20,
        encoder_hidden_size: 6,
        vocab_size: 20,
        codebook_size: 16,
        in_channels: 8,
        block_out_channels: [12],
        num_res_blocks: 1,
        force_down_up_sample: true,
        block_num_heads: 2,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        intermediate_size: 16,
        ..UVitConfig::default()
    };
    let variables = nn::VarStore::new(Device::Cpu);
    let model = OpenMuseUVit::new(&variables.root(), &config).unwrap();
    let conditions = || UVitConditions {
        states: randn(&[2, 3, 6]),
        pooled: randn(&[2, 5]),
        micro: Tensor::rand([2, 5], (Kind::Float, Device::Cpu)) * 512.0,
    };
    let masks = |tokens: i64| Tensor::full([2, tokens], model.mask_id(), (Kind::Int64, Device::Cpu));
    let made = model.generate(&masks(16), &conditions(), &conditions(), &sampling(3), None).unwrap();
    assert!(made.ids.max().int64_value(&[]) < 16);
    for tokens in [15, 9] {
        assert!(model.hidden(&masks(tokens), &conditions()).unwrap_err().to_string().contains("square"));
    }
    let short = UVitConditions { pooled: randn(&[2, 4]), ..conditions() };
    assert!(model.hidden(&masks(16), &short).unwrap_err().to_string().contains("[2, 5]"));
    assert!(UVitConfig { micro_cond_encode_dim: 6, ..config }.validate().is_err());
}

#[test]
fn guidance_rises() {
    for schedule in [GuidanceSchedule::Linear, GuidanceSchedule::Cosine] {
        let scales = schedule.scales(5.0, 8);
        assert!(scales.windows(2).all(|pair| pair[1] >= pair[0]));
        assert_eq!(*scales.last().unwrap(), 5.0);
    }
    assert_eq!(GuidanceSchedule::Constant.scales(2.0, 3), [2.0; 3]);
}
