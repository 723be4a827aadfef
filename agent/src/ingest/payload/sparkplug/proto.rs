//! The messages of Sparkplug B (Eclipse Sparkplug 3.0, chapter 6), written by hand for `prost`.
//!
//! Repeated and embedded messages stay bytes here and are decoded one by one: a payload of a hundred thousand empty metrics
//! costs then what it weighs, and is refused before it costs more. On the wire both are the same.
//!
//! What Protocol Buffers add to the program: 32 KB of code, of which 26 KB are `prost` and 6 KB what it derives from these structures
//! (`nm -S --size-sort` of a release build; less when it is optimised for size); Sparkplug itself is 52 KB, Kura 27 KB.

use bytes::Bytes;

/// `Payload`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Payload {
    /// Milliseconds since 1970.
    #[prost(uint64, optional, tag = "1")]
    pub timestamp: Option<u64>,
    /// Each a [`Metric`].
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub metrics: Vec<Bytes>,
    /// Sequence number, 0 to 255.
    #[prost(uint64, optional, tag = "3")]
    pub seq: Option<u64>,
    /// What the body is.
    #[prost(string, optional, tag = "4")]
    pub uuid: Option<String>,
    /// Bytes of the sender's own.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub body: Option<Bytes>,
}

/// `Payload.Metric`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metric {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(uint64, optional, tag = "2")]
    pub alias: Option<u64>,
    /// Milliseconds since 1970.
    #[prost(uint64, optional, tag = "3")]
    pub timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    pub datatype: Option<u32>,
    #[prost(bool, optional, tag = "5")]
    pub is_historical: Option<bool>,
    #[prost(bool, optional, tag = "6")]
    pub is_transient: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub is_null: Option<bool>,
    /// A [`PropertySet`].
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub properties: Option<Bytes>,
    #[prost(uint32, optional, tag = "10")]
    pub int_value: Option<u32>,
    #[prost(uint64, optional, tag = "11")]
    pub long_value: Option<u64>,
    #[prost(float, optional, tag = "12")]
    pub float_value: Option<f32>,
    #[prost(double, optional, tag = "13")]
    pub double_value: Option<f64>,
    #[prost(bool, optional, tag = "14")]
    pub boolean_value: Option<bool>,
    #[prost(string, optional, tag = "15")]
    pub string_value: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "16")]
    pub bytes_value: Option<Bytes>,
    /// A [`DataSet`].
    #[prost(bytes = "bytes", optional, tag = "17")]
    pub dataset_value: Option<Bytes>,
    /// A [`Template`].
    #[prost(bytes = "bytes", optional, tag = "18")]
    pub template_value: Option<Bytes>,
}

/// `Payload.PropertySet`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PropertySet {
    #[prost(string, repeated, tag = "1")]
    pub keys: Vec<String>,
    /// Each a [`PropertyValue`].
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub values: Vec<Bytes>,
}

/// `Payload.PropertyValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PropertyValue {
    #[prost(uint32, optional, tag = "1")]
    pub datatype: Option<u32>,
    #[prost(bool, optional, tag = "2")]
    pub is_null: Option<bool>,
    #[prost(uint32, optional, tag = "3")]
    pub int_value: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub long_value: Option<u64>,
    #[prost(float, optional, tag = "5")]
    pub float_value: Option<f32>,
    #[prost(double, optional, tag = "6")]
    pub double_value: Option<f64>,
    #[prost(bool, optional, tag = "7")]
    pub boolean_value: Option<bool>,
    #[prost(string, optional, tag = "8")]
    pub string_value: Option<String>,
    /// A [`PropertySet`].
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub set_value: Option<Bytes>,
    /// A [`PropertySetList`].
    #[prost(bytes = "bytes", optional, tag = "10")]
    pub sets_value: Option<Bytes>,
}

/// `Payload.PropertySetList`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PropertySetList {
    /// Each a [`PropertySet`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub sets: Vec<Bytes>,
}

/// `Payload.DataSet`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DataSet {
    #[prost(uint64, optional, tag = "1")]
    pub number_of_columns: Option<u64>,
    #[prost(string, repeated, tag = "2")]
    pub columns: Vec<String>,
    #[prost(uint32, repeated, packed = "false", tag = "3")]
    pub types: Vec<u32>,
    /// Each a [`Row`].
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub rows: Vec<Bytes>,
}

/// `Payload.DataSet.Row`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Row {
    /// Each a [`DataSetValue`].
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub elements: Vec<Bytes>,
}

/// `Payload.DataSet.DataSetValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DataSetValue {
    #[prost(uint32, optional, tag = "1")]
    pub int_value: Option<u32>,
    #[prost(uint64, optional, tag = "2")]
    pub long_value: Option<u64>,
    #[prost(float, optional, tag = "3")]
    pub float_value: Option<f32>,
    #[prost(double, optional, tag = "4")]
    pub double_value: Option<f64>,
    #[prost(bool, optional, tag = "5")]
    pub boolean_value: Option<bool>,
    #[prost(string, optional, tag = "6")]
    pub string_value: Option<String>,
}

/// `Payload.Template`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Template {
    #[prost(string, optional, tag = "1")]
    pub version: Option<String>,
    /// Each a [`Metric`].
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub metrics: Vec<Bytes>,
    /// Each a [`Parameter`].
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub parameters: Vec<Bytes>,
    #[prost(string, optional, tag = "4")]
    pub template_ref: Option<String>,
    #[prost(bool, optional, tag = "5")]
    pub is_definition: Option<bool>,
}

/// `Payload.Template.Parameter`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Parameter {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(uint32, optional, tag = "2")]
    pub datatype: Option<u32>,
    #[prost(uint32, optional, tag = "3")]
    pub int_value: Option<u32>,
    #[prost(uint64, optional, tag = "4")]
    pub long_value: Option<u64>,
    #[prost(float, optional, tag = "5")]
    pub float_value: Option<f32>,
    #[prost(double, optional, tag = "6")]
    pub double_value: Option<f64>,
    #[prost(bool, optional, tag = "7")]
    pub boolean_value: Option<bool>,
    #[prost(string, optional, tag = "8")]
    pub string_value: Option<String>,
}
