// Package codec turns an event into what a broker stores and back. It works on
// an untyped [Envelope] whose payload is JSON already, and needs package driver
// and the standard library only. Applications use it by choosing a [Codec] for
// the bus; the engine calls it.
//
// # What is written
//
// [DomainEvents], the default, writes the domain event as one JSON object:
// aggregateId, eventType, occurredAt, version and payload, as the TypeScript
// format has them, then id and, only when they say something, readableFrom,
// correlationId, causationId and source. The same facts, without the payload, go
// into headers where the broker has them, so that a queue can be filtered
// without reading bodies. [CloudEvents] writes CloudEvents 1.0.
//
// # What is read
//
// [Decode] does not ask which codec was used. It reads the envelope above, a
// bare payload with the event type in a header or in the name of the channel,
// CloudEvents in binary and in structured mode, and any of these inside an SNS
// notification. The record key is never read.
//
// # What is promised
//
//   - What Encode accepts, Decode gives back unchanged: the same text and the
//     same payload bytes. Two things are not kept: trace context that is no
//     printable ASCII or too long, and the source of a CloudEvent that had none
//     or was no URI reference.
//   - The same stored record decodes to the same event, with the same id, at
//     every delivery. An id of a bare payload comes from where the record lies
//     and never from what it says, so that two equal payloads are two events.
//   - A body is JSON exactly when encoding/json says so and it nests at most 128
//     levels deep; text means what encoding/json makes of it. Of members with the
//     same name the last one counts. Names are compared exactly, unlike in
//     encoding/json, which ignores their case.
//   - Whatever the bytes are, Decode returns an event or a [*FormatError] and
//     does not panic. Its work and memory grow with the size of the body only.
//
// # What is not promised
//
//   - The payload is not compared with any contract: it is a JSON object, and
//     what it means is for whoever knows its type.
//   - Members that are not known are ignored on reading and so are lost when an
//     event is written again.
//   - An aggregate id may be empty after reading; it never is on writing.
package codec
