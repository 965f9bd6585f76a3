//! Cosmos tokenizers (NVIDIA).

/// Our name of a tensor of a Cosmos checkpoint: every convolution and norm stands in a wrapper there.
pub(crate) fn our_name(name: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in name.split('.') {
        let wrapped = word == "norm" && words.last().is_some_and(|last| last.starts_with("norm"));
        if word != "conv3d" && !wrapped {
            words.push(word);
        }
    }
    words.join(".")
}
