package driver

import (
	"context"
	"errors"
	"time"
)

// Claims is the record of what a subscription is handling and has handled. All
// methods may be called at once.
type Claims interface {
	// Claim asks to handle the event behind a key. It is one atomic step:
	//   - nobody has it: it is claimed until Lease ends, ClaimFresh;
	//   - the same Owner has it: the lease is renewed, ClaimFresh;
	//   - another owner has it: ClaimBusy, with the end of that lease;
	//   - another owner had it and the lease is over, or it had claimed under an
	//     older Epoch of the same Source: taken over, ClaimFresh. A start of that
	//     owner never finished: Crashes is one higher than before, and Alone if it
	//     was counted as such;
	//   - it was finished: ClaimDone, with the digest of the first payload.
	// Request.Counting says whether a claim that is fresh counts as a start.
	Claim(ctx context.Context, request ClaimRequest) (ClaimAnswer, error)

	// Finish marks claims as done. Only a claim whose Owner still has it is
	// marked; ErrNotClaimed says that another has taken it over.
	Finish(ctx context.Context, request ClaimRequest) error

	// Release gives a claim back unfinished, so that the next Claim is fresh and
	// nothing is counted against the event any more. With Request.Unstarted what
	// is counted stays, for a month at least, and this claim is no start.
	// Releasing what is not claimed by Owner does nothing.
	Release(ctx context.Context, request ClaimRequest) error

	// Durable reports whether claims outlive the process and are shared by all
	// instances.
	Durable() bool
}

// ErrNotClaimed is returned by [Claims.Finish] when the claim is not (or no
// longer) the caller's.
var ErrNotClaimed = errors.New("tidings: not claimed by this owner")

// ClaimRequest names one claim.
type ClaimRequest struct {
	Subscription string
	// Key is the dedup key of the event.
	Key string
	// Owner is unique per delivery of the event to a process.
	Owner string
	// Lease is how long the claim lives unless it is renewed.
	Lease time.Duration
	// Keep is how long a finished key is remembered, 0 for ever.
	Keep time.Duration
	// Digest is a hash of the payload, kept with the key.
	Digest uint64
	// Source is where the event came from and Epoch this process's ownership of
	// it, as [ClaimEpochs] counts; "" and 0 where nobody owns sources. A claim
	// under an older epoch of a source is not waited for.
	Source string
	Epoch  int64
	// Counting says what a claim counts as.
	Counting Counting
	// Unstarted says of a claim that is released that its event was not started.
	Unstarted bool
}

// Counting says whether, and as what, the start of an event is counted. A count
// that stays is a process that ended while it handled the event.
type Counting int

const (
	// CountFirst counts a start unless earlier ones never finished: then nothing
	// is counted yet.
	CountFirst Counting = iota
	// CountBeside counts a start beside other events.
	CountBeside
	// CountAlone counts a start while the process handles nothing else.
	CountAlone
)

// ClaimEpochs is implemented by [Claims] that tell apart who owned a source when
// something was claimed.
type ClaimEpochs interface {
	// AdvanceClaims gives a source of a subscription to the caller and returns its
	// epoch, which is higher than every earlier one.
	AdvanceClaims(ctx context.Context, subscription, source string) (epoch int64, err error)
	// DetachClaim says that the claim of an owner, who has lost the source and still
	// handles the event, is to be waited for until its lease ends. What is not
	// claimed by Owner is left alone.
	DetachClaim(ctx context.Context, request ClaimRequest) error
}

// ClaimState is the answer of a [Claims] store.
type ClaimState int

const (
	ClaimFresh ClaimState = iota + 1 // handle it
	ClaimDone                        // it was handled: suppress it
	ClaimBusy                        // somebody handles it: ask again at Until, and never settle it
)

// ClaimAnswer is the result of [Claims.Claim].
type ClaimAnswer struct {
	State ClaimState
	// Until is when a busy claim's lease ends.
	Until time.Time
	// Digest is, for ClaimDone, the digest of the payload that was handled.
	Digest uint64
	// Crashes is how often the event was started before and never finished: by
	// owners that neither finished nor released their claims. Alone is how many of
	// these starts were counted as [CountAlone].
	Crashes, Alone int
}

// DeadLetter is an event that a subscription gave up on.
type DeadLetter struct {
	Subscription string
	Channel      string
	Type         string // "" when it could not be read
	ID           string // the event's, or one derived from its position
	AggregateID  string
	// Reason is one word: "exhausted", "permanent", "undecodable", "crashed",
	// "invalid", or what a driver said in [Delivery.GiveUp].
	Reason   string
	Err      string // the chain of the last failure
	Stack    string // of a panic, else ""
	Attempts int
	FailedAt time.Time
	Position string // where it lay on the broker
	Headers  Headers
	Body     []byte // raw, as it was delivered
	Value    any    // for a driver with Features.Values, in place of Body
}

// DeadLetters keeps what subscriptions gave up on. A driver implements it for
// its own broker; a store can take its place.
type DeadLetters interface {
	// PutDeadLetter stores one dead letter and returns nil when it is as
	// durable as the driver. Putting the same subscription, type and id again
	// is accepted; a topic or queue may then hold it twice. While it fails, the
	// engine holds the lane.
	PutDeadLetter(ctx context.Context, letter DeadLetter) error
}

// Lane names one unit of order of a subscription.
type Lane struct {
	Channel string
	Key     string // the aggregate id
}

// Parked is one event that waits in a [Lanes] store, in its place.
type Parked struct {
	Lane Lane
	// Source is the name of the source that the event came from, "" on a driver
	// without ownership. A lane belongs to whoever owns its source.
	Source   string
	ID       string // the event's
	Message  Message
	Position string
	Time     time.Time // the broker's, as at delivery
	// Attempts used so far: 0 for one that waits behind another or that cannot
	// be read yet.
	Attempts int
	// Reason is "exhausted", "permanent", "crashed", "behind", "unreadable" (too new
	// for the handler) or "lacking" (only another release handles its type).
	Reason   string
	Err      string
	ParkedAt time.Time
}

// Ownership is the right to work on the parked events of one source of a
// subscription, given by [Lanes.Own].
type Ownership struct {
	Subscription string
	Source       string // "" on a driver without sources
	// Epoch grows with each ownership of that subscription and source, over all
	// instances.
	Epoch int64
}

// Lanes keeps parked events in order. All methods may be called at once for
// different lanes; for one lane the engine calls one at a time. Every call with
// an ownership that has ended is [ErrNotOwned] and changes nothing: the check
// and the change are one step.
type Lanes interface {
	// Own takes the parked events of a source over, which ends every earlier
	// ownership of it, and lists the lanes that hold events.
	Own(ctx context.Context, subscription, source string) (Ownership, []Lane, error)

	// Park appends events to the end of their lane, in the order given; all are
	// of one lane. An event whose type and ID that lane holds already is not
	// appended again. ErrLanesFull says that the store's bound is reached: nothing was
	// appended.
	Park(ctx context.Context, owner Ownership, events []Parked) error

	// Head returns the oldest event of a lane; false when it holds none.
	Head(ctx context.Context, owner Ownership, lane Lane) (Parked, bool, error)

	// Record stores how often the head was tried, how it failed last, and why it is
	// still there, unless reason is "".
	Record(ctx context.Context, owner Ownership, lane Lane, id string, attempts int, reason, failure string) error

	// Remove takes the head away when its ID is id, and reports whether the lane
	// holds anything after that. Removing what is not there is accepted. It costs
	// the same however long the lane is.
	Remove(ctx context.Context, owner Ownership, lane Lane, id string) (more bool, err error)

	// Orders returns what operators have asked for since it was last called, each
	// once. An order for a lane that holds nothing any more is dropped.
	Orders(ctx context.Context, owner Ownership) ([]LaneOrder, error)

	// Durable reports whether what is parked outlives the process.
	Durable() bool
}

var (
	// ErrLanesFull is returned by [Lanes.Park] at the store's bound.
	ErrLanesFull = errors.New("tidings: the store of parked events is full")
	// ErrNotOwned is returned by [Lanes] where another instance has taken the
	// source over.
	ErrNotOwned = errors.New("tidings: another instance owns these parked events by now")
)

// LaneVerb is what an operator asks for a parked lane.
type LaneVerb int

const (
	// RetryHead tries the oldest event at once instead of when it is due.
	RetryHead LaneVerb = iota + 1
	// SkipHead makes a dead letter of the oldest event; the lane goes on behind
	// it.
	SkipHead
	// SkipLane makes dead letters of every event that the lane holds.
	SkipLane
)

// String returns "retry head", "skip head" or "skip lane".
func (v LaneVerb) String() string {
	switch v {
	case RetryHead:
		return "retry head"
	case SkipHead:
		return "skip head"
	case SkipLane:
		return "skip lane"
	}
	return "no verb"
}

// LaneOrder is what an operator asked for one lane, with the reason that was
// given.
type LaneOrder struct {
	Lane   Lane
	Verb   LaneVerb
	Reason string
}

// ParkedLane is a lane that holds events, as an operator sees it.
type ParkedLane struct {
	Subscription string
	Source       string
	Lane         Lane
	Events       int    // how many it holds
	Head         Parked // the oldest of them
}

// LaneStore is [Lanes] for operators: command line, console. All methods may be
// called at once.
type LaneStore interface {
	Lanes

	// List returns parked lanes of a subscription ("" for all), by subscription,
	// channel and key, after the one given (the zero value for the first page),
	// at most limit.
	List(ctx context.Context, subscription string, after ParkedLane, limit int) ([]ParkedLane, error)

	// Events returns the events that a lane holds, in order, at most limit.
	Events(ctx context.Context, subscription string, lane Lane, limit int) ([]Parked, error)

	// Order asks the owner of a lane for something; a later order for the same
	// lane replaces one that was not carried out yet. False when the lane holds
	// nothing.
	Order(ctx context.Context, subscription string, order LaneOrder) (bool, error)
}

// Lease is the right to work on one thing until it ends or is renewed.
type Lease struct {
	Name string
	// Epoch grows each time the lease is given to a holder. A statement that
	// names an older one has no effect: its holder was too slow.
	Epoch int64
}

// Member is an instance of a group, and what it can take leases of.
type Member struct {
	Holder string
	// Parts is how many leases there are of each kind that the instance knows:
	// shards of each channel, for example. Releases of one program differ in what
	// they know, and one must not wait for an instance that cannot take a part.
	Parts map[string]int
}

// Leases hands out named leases to the instances of a group, by the store's own
// clock. All methods may be called at once.
type Leases interface {
	// Join says that a member is alive for ttl and what it knows from now on, and
	// returns all members of the group that are alive, itself included. One that
	// never said what it knows has no Parts. It is asked about once a second, so it
	// costs the same however much a member knows.
	Join(ctx context.Context, group string, member Member, ttl time.Duration) (alive []Member, err error)

	// Leave gives up every lease of the holder and its place in the group.
	Leave(ctx context.Context, group, holder string) error

	// Acquire takes leases that are free or over, at most limit of those named,
	// each with a new epoch. It returns the ones it took.
	Acquire(ctx context.Context, group, holder string, names []string, limit int, ttl time.Duration) ([]Lease, error)

	// Renew prolongs what the holder still has, and returns that.
	Renew(ctx context.Context, group, holder string, ttl time.Duration) ([]Lease, error)

	// Release gives leases up. What is not the holder's is left alone.
	Release(ctx context.Context, group, holder string, names []string) error

	// KeptSince is for a store that lets one transaction write at a time. While one
	// of this process does, its leases can neither be renewed nor go to another; the
	// transaction renews at its end those that had not ended when it began. KeptSince
	// returns since when that has been so, by one transaction or several in turn: a
	// lease that had not ended then is not over. It is the zero time when there is no
	// such transaction, and always from other stores.
	KeptSince() time.Time
}
