//! Names of errors. They are those of the reference and of the MedTech service, because dashboards, alerts and
//! troubleshooting pages know them.

/// An error of evaluating a message or of building an Observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A required field is missing, blank, or cannot become what it must be.
    IncompatibleDataException,
    /// The message is no JSON.
    InvalidDataFormatException,
    /// An expression is wrong, or gives several tokens where one is expected.
    TemplateExpressionException,
    /// An argument of a JMESPath function has the wrong type.
    Exception,
    /// Division by zero (rule D3).
    DivideByZeroException,
    /// Integer overflow, or a result that is not finite (rule D3).
    OverflowException,
    /// A position or a time outside its range.
    ArgumentOutOfRangeException,
    /// The envelope is no JSON object.
    ArgumentException,
    /// A limit of the evaluation (nesting, results) was reached.
    InsufficientExecutionStackException,
    /// No FHIR template for a measurement type.
    TemplateNotFoundException,
    /// A group by correlation id has none.
    CorrelationIdNotDefinedException,
    /// A Quantity or SampledData value is no FHIR decimal.
    InvalidQuantityFhirValueException,
    /// A value type, period or merge that cannot be done.
    NotSupportedException,
}

impl ErrorKind {
    /// The name in telemetry, equal to the name of the variant.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::IncompatibleDataException => "IncompatibleDataException",
            ErrorKind::InvalidDataFormatException => "InvalidDataFormatException",
            ErrorKind::TemplateExpressionException => "TemplateExpressionException",
            ErrorKind::Exception => "Exception",
            ErrorKind::DivideByZeroException => "DivideByZeroException",
            ErrorKind::OverflowException => "OverflowException",
            ErrorKind::ArgumentOutOfRangeException => "ArgumentOutOfRangeException",
            ErrorKind::ArgumentException => "ArgumentException",
            ErrorKind::InsufficientExecutionStackException => "InsufficientExecutionStackException",
            ErrorKind::TemplateNotFoundException => "TemplateNotFoundException",
            ErrorKind::CorrelationIdNotDefinedException => "CorrelationIdNotDefinedException",
            ErrorKind::InvalidQuantityFhirValueException => "InvalidQuantityFhirValueException",
            ErrorKind::NotSupportedException => "NotSupportedException",
        }
    }
}
