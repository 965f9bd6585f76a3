//! Reading the pickles of PyTorch checkpoints without running them.
//!
//! A pickle is a program for a small stack machine, and two of its instructions call any function that the file names. This
//! reader knows a fixed list of names, gives each a meaning of its own, and refuses every other: nothing in a file can make
//! it do more than build the values below.

use std::collections::HashMap;

use super::ImportError;

/// Where a value lies in a [`Pickle`]. Values refer to each other by number, so that a file can neither nest them deeper
/// than the stack nor tie them into a knot that is never freed.
pub(super) type Id = usize;

/// What a pickle can hold.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    /// An integer of more than 64 bits.
    Big,
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name that stands for a type or a function.
    Global(String),
    /// An instance of a TorchScript class or a namespace, with its attributes once they are known.
    Object(Option<Id>),
    Storage(Storage),
    Tensor(TensorView),
}

impl Value {
    fn name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a truth value",
            Self::Int(_) | Self::Big => "an integer",
            Self::Float => "a float",
            Self::Text(_) => "a text",
            Self::Bytes => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Global(_) => "a name",
            Self::Object(_) => "an object",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// A file of numbers in the archive.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// Its name below `data/`.
    pub key: String,
    /// Its type, such as `FloatStorage`.
    pub kind: String,
    /// How many numbers it holds.
    pub len: i64,
}

/// A tensor as a view of a storage; lengths in numbers.
#[derive(Clone, Debug)]
pub(super) struct TensorView {
    pub storage: Storage,
    pub offset: i64,
    pub size: Vec<i64>,
    pub stride: Vec<i64>,
}

/// All values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The value that the pickle is about.
    pub root: Id,
}

impl Pickle {
    /// Reads a whole pickle.
    pub fn read(bytes: &[u8]) -> Result<Self, ImportError> {
        let mut machine = Machine { bytes, at: 0, ..Machine::default() };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root })
    }

    pub fn value(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// The value under a key of a dictionary.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        let Value::Dict(items) = self.value(id) else { return None };
        items
            .iter()
            .rev()
            .find(|(k, _)| matches!(self.value(*k), Value::Text(k) if k == key))
            .map(|(_, v)| *v)
    }
}

fn malformed(problem: impl Into<String>) -> ImportError {
    ImportError::Malformed(problem.into())
}

/// The names that a file may call or refer to, beside storage types and TorchScript classes.
mod known {
    pub const ORDERED_DICT: &str = "collections.OrderedDict";
    pub const REBUILD_TENSOR: &str = "torch._utils._rebuild_tensor_v2";
    pub const REBUILD_PARAMETER: &str = "torch._utils._rebuild_parameter";
    pub const REBUILD_PARAMETER_WITH_STATE: &str = "torch._utils._rebuild_parameter_with_state";
    pub const SIZE: &str = "torch.Size";
    pub const DEVICE: &str = "torch.device";
    /// What a command line was parsed into: attributes and nothing else.
    pub const NAMESPACE: &str = "argparse.Namespace";
    /// Lightning's dictionary of hyper-parameters.
    pub const ATTRIBUTE_DICTS: [&str; 2] = [
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
    ];
    /// Lightning's classes and functions, which its checkpoints name as keys and defaults. They are never called.
    pub const LIGHTNING: &str = "pytorch_lightning.";
    /// TorchScript's typed lists and dictionaries: the value, wrapped.
    pub const TORCHSCRIPT: &str = "torch.jit._pickle.";
    pub const TORCHSCRIPT_CLASS: &str = "__torch__.";
    pub const STORAGES: [&str; 10] = [
        "DoubleStorage",
        "FloatStorage",
        "HalfStorage",
        "BFloat16Storage",
        "LongStorage",
        "IntStorage",
        "ShortStorage",
        "CharStorage",
        "ByteStorage",
        "BoolStorage",
    ];
    pub const DTYPES: [&str; 10] =
        ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"];

    /// Whether a name is one of these.
    pub fn allows(name: &str) -> bool {
        let fixed = [
            ORDERED_DICT,
            REBUILD_TENSOR,
            REBUILD_PARAMETER,
            REBUILD_PARAMETER_WITH_STATE,
            SIZE,
            DEVICE,
            NAMESPACE,
        ];
        fixed.contains(&name)
            || ATTRIBUTE_DICTS.contains(&name)
            || name.starts_with(LIGHTNING)
            || name.starts_with(TORCHSCRIPT)
            || name.starts_with(TORCHSCRIPT_CLASS)
            || name
                .strip_prefix("torch.")
                .is_some_and(|name| STORAGES.contains(&name) || DTYPES.contains(&name))
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, ImportError> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                // PROTO, FRAME: how the rest is written.
                0x80 => {
                    self.take(1)?;
                }
                0x95 => {
                    self.take(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'N' => self.push(Value::None),
                0x88 | 0x89 => self.push(Value::Bool),
                b'J' => {
                    let value = i64::from(i32::from_le_bytes(self.array()?));
                    self.push(Value::Int(value));
                }
                b'K' => {
                    let value = i64::from(u8::from_le_bytes(self.array()?));
                    self.push(Value::Int(value));
                }
                b'M' => {
                    let value = i64::from(u16::from_le_bytes(self.array()?));
                    self.push(Value::Int(value));
                }
                0x8a => {
                    let count = usize::from(u8::from_le_bytes(self.array()?));
                    self.long(count)?;
                }
                0x8b => {
                    let count = self.count32()?;
                    self.long(count)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float);
                }
                // Texts, and the byte strings that Python 2 wrote for them.
                b'X' | b'T' => {
                    let count = self.count32()?;
                    self.text(count)?;
                }
                0x8c | b'U' => {
                    let count = usize::from(u8::from_le_bytes(self.array()?));
                    self.text(count)?;
                }
                0x8d => {
                    let count = self.count64()?;
                    self.text(count)?;
                }
                b'C' => {
                    let count = usize::from(u8::from_le_bytes(self.array()?));
                    self.take(count)?;
                    self.push(Value::Bytes);
                }
                b'B' => {
                    let count = self.count32()?;
                    self.take(count)?;
                    self.push(Value::Bytes);
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b']' => self.push(Value::List(Vec::new())),
                b')' => self.push(Value::Tuple(Vec::new())),
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Value::Tuple(items));
                }
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let start =
                        self.stack.len().checked_sub(count).ok_or_else(|| malformed("an empty stack"))?;
                    let items = self.stack.split_off(start);
                    self.push(Value::Tuple(items));
                }
                b'l' => {
                    let items = self.since_mark()?;
                    self.push(Value::List(items));
                }
                b'd' => {
                    let items = pairs(self.since_mark()?)?;
                    self.push(Value::Dict(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.since_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![(key, value)])?;
                }
                b'u' => {
                    let items = pairs(self.since_mark()?)?;
                    self.insert(items)?;
                }
                b'q' => {
                    let place = usize::from(u8::from_le_bytes(self.array()?));
                    self.memoize(place)?;
                }
                b'r' => {
                    let place = self.count32()?;
                    self.memoize(place)?;
                }
                0x94 => self.memoize(self.memo.len())?,
                b'h' => {
                    let place = usize::from(u8::from_le_bytes(self.array()?));
                    self.recall(place)?;
                }
                b'j' => {
                    let place = self.count32()?;
                    self.recall(place)?;
                }
                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.global(name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let name = format!("{}.{}", self.as_text(module)?, self.as_text(name)?);
                    self.global(name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let storage = self.storage(id)?;
                    self.push(Value::Storage(storage));
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                // NEWOBJ
                0x81 => {
                    let (_, class) = (self.pop()?, self.pop()?);
                    match self.as_global(class)? {
                        name if name == known::ORDERED_DICT || known::ATTRIBUTE_DICTS.contains(&name) => {
                            self.push(Value::Dict(Vec::new()));
                        }
                        name if name == known::NAMESPACE || name.starts_with(known::TORCHSCRIPT_CLASS) => {
                            self.push(Value::Object(None));
                        }
                        name => return Err(ImportError::Global(name.to_string())),
                    }
                }
                b'b' => {
                    let (state, object) = (self.pop()?, self.top()?);
                    match &mut self.values[object] {
                        Value::Object(attributes) => *attributes = Some(state),
                        // A state dict's notes on the versions of its modules.
                        Value::Dict(_) => {}
                        _ => return Err(malformed("a state for a value that has none")),
                    }
                }
                other => {
                    return Err(malformed(format!(
                        "the instruction 0x{other:02x}, which state dicts do not need"
                    )));
                }
            }
        }
    }

    /// What the functions of a checkpoint are: ways to write a value.
    fn call(&mut self, function: Id, arguments: Id) -> Result<(), ImportError> {
        let name = self.as_global(function)?.to_string();
        let arguments = self.as_sequence(arguments)?.to_vec();
        let first = arguments.first().copied();
        match name.as_str() {
            known::ORDERED_DICT => {
                let mut items = Vec::new();
                if let Some(list) = first {
                    for pair in self.as_sequence(list)?.to_vec() {
                        let [key, value] = self.as_sequence(pair)? else {
                            return Err(malformed("an ordered dictionary of something other than pairs"));
                        };
                        items.push((*key, *value));
                    }
                }
                self.push(Value::Dict(items));
            }
            known::REBUILD_TENSOR => {
                let [storage, offset, size, stride, ..] = arguments[..] else {
                    return Err(malformed("a tensor without storage, offset, size and stride"));
                };
                let Value::Storage(storage) = self.values[storage].clone() else {
                    return Err(malformed("a tensor whose storage is none"));
                };
                let (size, stride) = (self.as_ints(size)?, self.as_ints(stride)?);
                let view = TensorView { storage, offset: self.as_int(offset)?, size, stride };
                self.push(Value::Tensor(view));
            }
            name if name == known::REBUILD_PARAMETER
                || name == known::REBUILD_PARAMETER_WITH_STATE
                || name == known::SIZE
                || name == known::DEVICE
                || name.starts_with(known::TORCHSCRIPT) =>
            {
                let first = first.ok_or_else(|| malformed(format!("{name} without an argument")))?;
                self.stack.push(first);
            }
            other => return Err(ImportError::Global(other.to_string())),
        }
        Ok(())
    }

    fn global(&mut self, name: String) -> Result<(), ImportError> {
        if !known::allows(&name) {
            return Err(ImportError::Global(name));
        }
        self.push(Value::Global(name));
        Ok(())
    }

    /// `("storage", type, key, device, number of elements)`.
    fn storage(&self, id: Id) -> Result<Storage, ImportError> {
        let &[tag, kind, key, _, len] = self.as_sequence(id)? else {
            return Err(malformed("a persistent id that is no storage"));
        };
        if self.as_text(tag)? != "storage" {
            return Err(malformed("a persistent id that is no storage"));
        }
        let kind = self.as_global(kind)?.trim_start_matches("torch.").to_string();
        let len = self.as_int(len)?;
        if len < 0 {
            return Err(malformed(format!("a storage of {len} numbers")));
        }
        Ok(Storage { key: self.as_text(key)?.to_string(), kind, len })
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn top(&self) -> Result<Id, ImportError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&id) if self.stack.len() > floor => Ok(id),
            _ => Err(malformed("an empty stack")),
        }
    }

    fn pop(&mut self) -> Result<Id, ImportError> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, ImportError> {
        let mark = self.marks.pop().ok_or_else(|| malformed("an empty stack"))?;
        if mark > self.stack.len() {
            return Err(malformed("an empty stack"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), ImportError> {
        let list = self.top()?;
        let Value::List(list) = &mut self.values[list] else { return Err(malformed("items for no list")) };
        list.extend(items);
        Ok(())
    }

    fn insert(&mut self, items: Vec<(Id, Id)>) -> Result<(), ImportError> {
        let dict = self.top()?;
        let Value::Dict(dict) = &mut self.values[dict] else {
            return Err(malformed("items for no dictionary"));
        };
        dict.extend(items);
        Ok(())
    }

    fn memoize(&mut self, place: usize) -> Result<(), ImportError> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), ImportError> {
        let id = *self.memo.get(&place).ok_or_else(|| malformed("a reference to nothing"))?;
        self.stack.push(id);
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ImportError> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| malformed("it is cut short"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImportError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn count32(&mut self) -> Result<usize, ImportError> {
        usize::try_from(u32::from_le_bytes(self.array()?)).map_err(|_| malformed("a length beyond memory"))
    }

    fn count64(&mut self) -> Result<usize, ImportError> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| malformed("a length beyond memory"))
    }

    fn long(&mut self, count: usize) -> Result<(), ImportError> {
        let bytes = self.take(count)?;
        if count > 8 {
            self.push(Value::Big);
            return Ok(());
        }
        // Little-endian, two's complement.
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..count].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, count: usize) -> Result<(), ImportError> {
        let text = String::from_utf8_lossy(self.take(count)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, ImportError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| malformed("it is cut short"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| malformed("a name that is no text"))
    }

    fn as_text(&self, id: Id) -> Result<&str, ImportError> {
        match &self.values[id] {
            Value::Text(text) => Ok(text),
            other => Err(malformed(format!("{} in place of a text", other.name()))),
        }
    }

    fn as_global(&self, id: Id) -> Result<&str, ImportError> {
        match &self.values[id] {
            Value::Global(name) => Ok(name),
            other => Err(malformed(format!("{} in place of a name", other.name()))),
        }
    }

    fn as_int(&self, id: Id) -> Result<i64, ImportError> {
        match self.values[id] {
            Value::Int(value) => Ok(value),
            ref other => Err(malformed(format!("{} in place of a number", other.name()))),
        }
    }

    fn as_sequence(&self, id: Id) -> Result<&[Id], ImportError> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Ok(items),
            other => Err(malformed(format!("{} in place of a sequence", other.name()))),
        }
    }

    fn as_ints(&self, id: Id) -> Result<Vec<i64>, ImportError> {
        self.as_sequence(id)?.iter().map(|&id| self.as_int(id)).collect()
    }
}

/// Keys and values in turn.
fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, ImportError> {
    if !items.len().is_multiple_of(2) {
        return Err(malformed("a key without a value"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
