package tidings

import (
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Occurrence says how often an event of a contract can happen to one aggregate.
// It decides what counts as the same event when a delivery comes twice, and has
// no default: the wrong one either loses events or handles them twice.
type Occurrence int

const (
	// Once is for what happens once in the life of an aggregate, such as
	// "created" or "activated". The dedup key is aggregate id and event type: a
	// second event, even with an id of its own, is a duplicate.
	Once Occurrence = iota + 1
	// Repeatable is for what happens again and again, such as "updated". The
	// dedup key is aggregate id, event type and event id.
	Repeatable
)

// String returns "once" or "repeatable".
func (o Occurrence) String() string {
	switch o {
	case Once:
		return "once"
	case Repeatable:
		return "repeatable"
	}
	return fmt.Sprintf("occurrence(%d)", int(o))
}

// Contract is the typed, versioned definition of an event, owned by the module
// that the first segment of its type names. Make it with [Define] and keep it
// in a package variable; it is a small value that may be copied and used from
// any goroutine. The zero Contract is not usable.
type Contract[P any] struct {
	definition *definition
}

// ContractOption changes what [Define] declares: [Channel], [ReadableFrom],
// [From], [ReadsFrom], [AggregateFrom] or [OnceWithin].
type ContractOption func(*definition)

// definition is the untyped core of a contract.
type definition struct {
	eventType    string
	module       string
	version      int
	occurrence   Occurrence
	channel      string
	readableFrom int
	keep         time.Duration
	payload      *payloadPlan
	place        string

	readsFrom int            // 0: not said
	upcasts   map[int]upcast // by the version they read
	oldest    int            // the oldest version that can be read

	aggregateType reflect.Type
	aggregateFrom func(payload any) string

	decode func(raw []byte) (record, error)
	adopt  func(payload any, from *header) record

	complaints []string
}

// upcast turns a payload of an older contract into one of the newer.
type upcast struct {
	from    *definition
	to      reflect.Type
	convert func(payload any) (any, error)
}

// Define declares a contract: the payload type P, the event type
// "module.aggregate.action" in lower-case words (a-z, 0-9, and - or _ inside a
// segment), the version (1 or higher) and how often it can occur.
//
// Like [regexp.MustCompile] it is meant for package variables and panics with
// one sentence when the declaration is wrong: a bad name, a payload that is not
// serializable primitive data, a version that does not say how an older one is
// read.
//
// P is a struct of bool, numbers, strings and named types of these, time.Time,
// time.Duration, []byte, value types that marshal as text (uuid.UUID,
// decimals), pointers to these for optional fields, slices and string-keyed
// maps of these, and structs of these. A field tagged `tidings:"sensitive"` is
// shown to handlers only; see [Masked].
func Define[P any](eventType string, version int, occurrence Occurrence, options ...ContractOption) Contract[P] {
	d := &definition{
		eventType:  eventType,
		version:    version,
		occurrence: occurrence,
		channel:    eventType,
		place:      callerPlace(2),
	}
	refuse := func(format string, args ...any) {
		panic(fmt.Sprintf("tidings: contract %q version %d: %s", eventType, version, fmt.Sprintf(format, args...)))
	}
	segments, problem := splitName(eventType)
	if problem != "" || len(segments) != 3 {
		refuse("the event type must be module.aggregate.action in lower-case words (a-z, 0-9, and - or _ inside a segment), for example identity.user.created")
	}
	d.module = segments[0]
	if version < 1 {
		refuse("the version must be 1 or higher")
	}
	if occurrence != Once && occurrence != Repeatable {
		refuse("say tidings.Once (happens once in the life of an aggregate) or tidings.Repeatable")
	}
	plan, err := planPayload(reflect.TypeFor[P]())
	if err != nil {
		refuse("%v", err)
	}
	d.payload = plan
	d.decode = func(raw []byte) (record, error) {
		r := &typedRecord[P]{}
		if err := json.Unmarshal(raw, &r.payload); err != nil {
			return nil, plan.discreet(err)
		}
		r.definition = d
		return r, nil
	}
	d.adopt = func(payload any, from *header) record {
		r := &typedRecord[P]{header: *from, payload: payload.(P)}
		r.definition = d
		return r
	}
	for _, option := range options {
		option(d)
	}
	if len(d.complaints) > 0 {
		refuse("%s", strings.Join(d.complaints, "; "))
	}
	if d.aggregateType != nil && d.aggregateType != reflect.TypeFor[P]() {
		refuse("AggregateFrom reads %v, the payload is %v", d.aggregateType, reflect.TypeFor[P]())
	}
	if d.keep > 0 && occurrence != Once {
		refuse("OnceWithin is for contracts that are Once: keys of repeatable events expire by themselves")
	}
	if d.readableFrom == 0 {
		d.readableFrom = version
	}
	if d.readableFrom < 1 || d.readableFrom > version {
		refuse("ReadableFrom(%d) must be between 1 and the version", d.readableFrom)
	}
	if problem := d.checkVersions(reflect.TypeFor[P]()); problem != "" {
		refuse("%s", problem)
	}
	return Contract[P]{definition: d}
}

// checkVersions finds the oldest version that d can read, and the first gap.
func (d *definition) checkVersions(payload reflect.Type) string {
	if d.version == 1 {
		if len(d.upcasts) > 0 || d.readsFrom > 1 {
			return "version 1 has no older version to read"
		}
		d.oldest = 1
		return ""
	}
	if len(d.upcasts) == 0 && d.readsFrom == 0 {
		return fmt.Sprintf("it does not say how version %d is read: add tidings.From(V%d, func) to convert it, tidings.ReadsFrom(%d) if older payloads decode as they are, or tidings.ReadsFrom(%d) to hold older events",
			d.version-1, d.version-1, 1, d.version)
	}
	if d.readsFrom > d.version || d.readsFrom < 0 {
		return fmt.Sprintf("ReadsFrom(%d) must be between 1 and the version", d.readsFrom)
	}
	d.oldest = d.version
	if d.readsFrom > 0 {
		d.oldest = d.readsFrom
	}
	for v, u := range d.upcasts {
		switch {
		case v >= d.version:
			return fmt.Sprintf("From reads version %d, which is not older", v)
		case u.from.eventType != d.eventType:
			return fmt.Sprintf("From reads %q, another event", u.from.eventType)
		case u.from.channel != d.channel:
			return fmt.Sprintf("version %d has channel %s and this version %s: the versions of an event share one", v, u.from.channel, d.channel)
		case u.from.occurrence != d.occurrence:
			return fmt.Sprintf("version %d is %s and this version %s: the versions of an event share one", v, u.from.occurrence, d.occurrence)
		case u.to != payload:
			return fmt.Sprintf("From version %d makes %v, the payload is %v", v, u.to, payload)
		}
		d.oldest = min(d.oldest, u.from.oldest)
	}
	for v := d.oldest; v < d.version; v++ {
		if !d.reads(v) {
			return fmt.Sprintf("there is a gap: it reads version %d but not version %d; add tidings.From(V%d, func)", d.oldest, v, v)
		}
	}
	return ""
}

// reads reports whether a payload of version v can be turned into d's.
func (d *definition) reads(v int) bool {
	if v == d.version {
		return true
	}
	if v > d.version {
		return false
	}
	if _, ok := d.upcasts[v]; ok || d.readsFrom > 0 && v >= d.readsFrom {
		return true
	}
	return d.stepFor(v) != nil
}

// stepFor returns the upcast with the lowest version above v whose contract
// reads v.
func (d *definition) stepFor(v int) *upcast {
	var best *upcast
	for version, u := range d.upcasts {
		if version > v && u.from.reads(v) && (best == nil || version < best.from.version) {
			best = &u
		}
	}
	return best
}

// read decodes a payload of version v as d's. It returns errUnreadable when the
// version is out of reach: that event is not poison.
func (d *definition) read(v, readableFrom int, raw []byte) (record, error) {
	switch {
	case v == d.version, v > d.version && readableFrom <= d.version:
		return d.decode(raw)
	case !d.reads(v):
		return nil, errUnreadable
	}
	if u, ok := d.upcasts[v]; ok {
		return u.apply(d, v, readableFrom, raw)
	}
	if d.readsFrom > 0 && v >= d.readsFrom {
		return d.decode(raw)
	}
	return d.stepFor(v).apply(d, v, readableFrom, raw)
}

func (u *upcast) apply(d *definition, v, readableFrom int, raw []byte) (record, error) {
	older, err := u.from.read(v, readableFrom, raw)
	if err != nil {
		return nil, err
	}
	payload, err := u.convert(older.payloadValue())
	if err != nil {
		return nil, fmt.Errorf("upcast from version %d to %d: %w", u.from.version, d.version, err)
	}
	return d.adopt(payload, older.head()), nil
}

// Channel names what is ordered together on a broker. By default each event
// type is a channel of its own; types whose mutual order matters share one, for
// example tidings.Channel("billing.subscription"). The name is made of dotted
// lower-case words, as an event type is.
func Channel(name string) ContractOption {
	return func(d *definition) {
		if _, problem := splitName(name); problem != "" {
			d.complaints = append(d.complaints, fmt.Sprintf("Channel(%q): %s", name, problem))
		}
		d.channel = name
	}
}

// ReadableFrom declares the oldest reader that understands this version: a
// handler written for that version or a later one takes the event as its own
// and ignores what it does not know. It travels with the event. The default is
// the version itself: older handlers hold the event until they are replaced.
func ReadableFrom(version int) ContractOption {
	return func(d *definition) {
		if version < 1 {
			d.complaints = append(d.complaints, fmt.Sprintf("ReadableFrom(%d) must be 1 or higher", version))
		}
		d.readableFrom = version
	}
}

// ReadsFrom declares that payloads from that version on decode as this
// version's, as they are. With the contract's own version it declares that no
// older one is read: such events are held.
func ReadsFrom(version int) ContractOption {
	return func(d *definition) {
		if version < 1 {
			d.complaints = append(d.complaints, fmt.Sprintf("ReadsFrom(%d) must be 1 or higher", version))
		}
		d.readsFrom = version
	}
}

// From declares how a payload of an older version becomes one of this. The
// function must be pure: it runs again on every read. Chains are followed, so
// version 3 needs From(V2) only. An error makes the event a dead letter.
func From[Old, New any](older Contract[Old], convert func(Old) (New, error)) ContractOption {
	return func(d *definition) {
		if older.definition == nil || convert == nil {
			d.complaints = append(d.complaints, "From needs a defined contract and a function")
			return
		}
		if d.upcasts == nil {
			d.upcasts = make(map[int]upcast)
		}
		if _, twice := d.upcasts[older.definition.version]; twice {
			d.complaints = append(d.complaints, fmt.Sprintf("From version %d is given twice", older.definition.version))
		}
		d.upcasts[older.definition.version] = upcast{
			from:    older.definition,
			to:      reflect.TypeFor[New](),
			convert: func(payload any) (any, error) { return convert(payload.(Old)) },
		}
	}
}

// AggregateFrom says which field of the payload is the aggregate id, for
// messages that carry a bare payload and no envelope, as a publisher of the
// form publish(name, payload) sends them. Without it such a message has no
// aggregate: it is deduplicated by where it lies, has no order, and is counted
// as unkeyed.
func AggregateFrom[P any](read func(P) string) ContractOption {
	return func(d *definition) {
		d.aggregateType = reflect.TypeFor[P]()
		d.aggregateFrom = func(payload any) string { return read(payload.(P)) }
	}
}

// OnceWithin limits how long the dedup key of a [Once] contract is remembered
// by a durable store. Without it the key is kept for ever.
func OnceWithin(d time.Duration) ContractOption {
	return func(def *definition) {
		if d <= 0 {
			def.complaints = append(def.complaints, "OnceWithin must be longer than zero")
		}
		def.keep = d
	}
}

// Type is the event type, "identity.user.created".
func (c Contract[P]) Type() string { return c.definition.eventType }

// Version is the contract's version, 1 or higher.
func (c Contract[P]) Version() int { return c.definition.version }

// Occurrence is [Once] or [Repeatable].
func (c Contract[P]) Occurrence() Occurrence { return c.definition.occurrence }

// Channel is what the contract's events are ordered with: its own type, or the
// name that option [Channel] gave.
func (c Contract[P]) Channel() string { return c.definition.channel }

// String returns type and version, "identity.user.created v1".
func (c Contract[P]) String() string {
	if c.definition == nil {
		return "undefined contract"
	}
	return c.definition.String()
}

func (d *definition) String() string { return fmt.Sprintf("%s v%d", d.eventType, d.version) }

// splitName splits a dotted name and says what is wrong with it, or "".
func splitName(name string) (segments []string, problem string) {
	const rule = "must be lower-case words (a-z, 0-9, and - or _ inside a word) separated by dots"
	segments = strings.Split(name, ".")
	for _, segment := range segments {
		if !validWord(segment) {
			return segments, rule
		}
	}
	if len(name) > 200 {
		return segments, "must be at most 200 bytes"
	}
	return segments, ""
}

func validWord(word string) bool {
	if word == "" || !alphanumeric(word[0]) || !alphanumeric(word[len(word)-1]) {
		return false
	}
	return !slices.ContainsFunc([]byte(word), func(b byte) bool {
		return !alphanumeric(b) && b != '-' && b != '_'
	})
}

func alphanumeric(b byte) bool { return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' }

// callerPlace returns file and line of a caller, for complaints that name two
// places.
func callerPlace(skip int) string {
	_, file, line, ok := runtime.Caller(skip)
	if !ok {
		return "unknown place"
	}
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		if j := strings.LastIndexByte(file[:i], '/'); j >= 0 {
			file = file[j+1:]
		}
	}
	return fmt.Sprintf("%s:%d", file, line)
}
