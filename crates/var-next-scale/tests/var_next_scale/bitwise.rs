use tch::{Device, Kind, nn};
use var_next_scale::Pyramid;
use var_next_scale::bitwise::{MultiScaleBsq, MultiScaleBsqConfig};
use video_core::GridShape;

use crate::{alone, distance, message, rand};

fn pyramid() -> Pyramid {
    let shape = |[frames, height, width]: [i64; 3]| GridShape { frames, height, width };
    Pyramid::new("scales", [[1, 1, 1], [2, 2, 2], [3, 4, 4]].map(shape).to_vec()).unwrap()
}

#[test]
fn bits_say_all_of_the_last_scale() {
    let _alone = alone();
    let variables = nn::VarStore::new(Device::Cpu);
    for (ln_before_quant, use_decay_factor) in [(false, false), (true, true)] {
        let config = MultiScaleBsqConfig { dim: 4, ln_before_quant, use_decay_factor };
        let quantizer = MultiScaleBsq::new(&variables.root(), config, pyramid()).unwrap();
        let result = quantizer.quantize(&rand(&[2, 4, 3, 4, 4])).unwrap();
        assert_eq!(result.bits.iter().map(|bits| bits.size()[1]).collect::<Vec<_>>(), [1, 2, 3]);
        let sign = result.bits[2].to_kind(Kind::Float) * 2.0 - 1.0;
        let weight = if use_decay_factor { 0.8 } else { 1.0 } / 2.0;
        // The last input is the sum before the last scale, at full size.
        let before = &result.var_inputs[1];
        assert!(distance(&(before + sign.permute([0, 4, 1, 2, 3]) * weight), &result.quantized) < 1e-5);
    }
    let config = MultiScaleBsqConfig { dim: 4, ln_before_quant: false, use_decay_factor: false };
    let quantizer = MultiScaleBsq::new(&variables.root(), config, pyramid()).unwrap();
    assert!(message(quantizer.quantize(&rand(&[2, 3, 3, 4, 4])).unwrap_err()).contains("features"));
    let none = MultiScaleBsqConfig { dim: 0, ..config };
    assert!(message(MultiScaleBsq::new(&variables.root(), none, pyramid()).unwrap_err()).contains("dim = 0"));
}
