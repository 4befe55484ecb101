package drivertest

import (
	"errors"
	"time"

	"github.com/tidings-go/tidings"
)

// module is the module that publishes and subscribes in every case, but for
// those that are about several.
const module = "conformance"

// stepPayload is the payload of most cases: a number that grows with each event
// of an aggregate.
type stepPayload struct {
	Number int    `json:"number"`
	Text   string `json:"text,omitempty"`
}

// emptyPayload says nothing: that it happened is all there is.
type emptyPayload struct{}

type nestedPayload struct {
	Name  string   `json:"name"`
	Words []string `json:"words"`
}

// everythingPayload has a field of each kind that a payload may have.
type everythingPayload struct {
	Text     string                   `json:"text"`
	Words    []string                 `json:"words"`
	None     []string                 `json:"none"`
	Nothing  []int                    `json:"nothing"`
	Counts   map[string]int64         `json:"counts"`
	Bytes    []byte                   `json:"bytes"`
	Flag     bool                     `json:"flag"`
	Small    int8                     `json:"small"`
	Big      int64                    `json:"big,string"`
	Unsigned uint64                   `json:"unsigned,string"`
	Ratio    float64                  `json:"ratio"`
	Tiny     float64                  `json:"tiny"`
	At       time.Time                `json:"at"`
	Took     time.Duration            `json:"took"`
	Maybe    *int                     `json:"maybe"`
	Missing  *string                  `json:"missing,omitempty"`
	Nested   nestedPayload            `json:"nested"`
	Deep     map[string]nestedPayload `json:"deep"`
}

// accountPayload is shared by two types of one channel.
type accountPayload struct {
	Number int `json:"number"`
}

type paperV1 struct {
	Number int `json:"number"`
}

type paperV2 struct {
	Number int    `json:"number"`
	Title  string `json:"title"`
}

const accountChannel = "conformance.account"

var (
	stepTaken      = tidings.Define[stepPayload]("conformance.step.taken", 1, tidings.Repeatable)
	stepAnswered   = tidings.Define[stepPayload]("conformance.step.answered", 1, tidings.Repeatable)
	bellRung       = tidings.Define[emptyPayload]("conformance.bell.rung", 1, tidings.Repeatable)
	everything     = tidings.Define[everythingPayload]("conformance.everything.said", 1, tidings.Repeatable)
	userRegistered = tidings.Define[stepPayload]("conformance.user.registered", 1, tidings.Once)

	accountOpened  = tidings.Define[accountPayload]("conformance.account.opened", 1, tidings.Repeatable, tidings.Channel(accountChannel))
	accountChanged = tidings.Define[accountPayload]("conformance.account.changed", 1, tidings.Repeatable, tidings.Channel(accountChannel))

	paperWritten = tidings.Define[paperV1]("conformance.paper.written", 1, tidings.Repeatable)
	paperTitled  = tidings.Define[paperV2]("conformance.paper.written", 2, tidings.Repeatable,
		tidings.From(paperWritten, func(p paperV1) (paperV2, error) { return paperV2{Number: p.Number, Title: "untitled"}, nil }))

	// otherOccurred belongs to another module.
	otherOccurred = tidings.Define[emptyPayload]("elsewhere.thing.occurred", 1, tidings.Repeatable)
)

var errNotYet = errors.New("the handler is not ready for it yet")
