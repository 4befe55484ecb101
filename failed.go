package tidings

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/tidings-go/tidings/driver"
)

// HandlerFailedPayload says which subscription gave which event up.
type HandlerFailedPayload struct {
	Subscription string `json:"subscription"`
	EventType    string `json:"eventType"` // "" when it could not be read
	EventID      string `json:"eventId"`
	AggregateID  string `json:"aggregateId"`
	Reason       string `json:"reason"` // as driver.DeadLetter.Reason
	Error        string `json:"error"`  // at most 1 000 bytes
	Attempts     int    `json:"attempts"`
	Position     string `json:"position"`
}

// HandlerFailed is published for each dead letter where
// Options.AnnounceFailures is set: an event that modules may react to as to any
// other (tell a person, compensate, open a ticket). Its aggregate is the failed
// event's, its id the same for the same dead letter, and the failed event its
// cause. A dead letter that is tried again and fails is announced again, with
// another id, once for each time that it dies. A failure of a subscription to HandlerFailed itself is not announced.
var HandlerFailed = Define[HandlerFailedPayload]("tidings.handler.failed", 1, Repeatable)

// announce publishes that an event was given up. While that fails the lane
// holds, as it does while the dead letter cannot be stored.
func (s *subscription) announce(i *item) verdict {
	if !s.bus.options.AnnounceFailures || i.eventType() == HandlerFailed.Type() {
		return verdict{done: true, settle: true}
	}
	i.stage = stageAnnounce
	aggregate := i.aggregateID
	if aggregate == "" {
		aggregate = i.id
	}
	failure := ""
	if i.failure != nil {
		failure = strings.ToValidUTF8(i.failure.Error(), "\uFFFD") // else it could not be published
		if len(failure) > 1000 {
			failure = trimText(failure, 1000)
		}
	}
	name := s.name + "\n" + i.eventType() + "\n" + i.id
	if i.letter != nil { // it died again
		name = fmt.Sprintf("%s\n%s\n%s\n%d", s.name, i.letter.Type, i.letter.ID, i.letter.Times+1)
	}
	sum := sha256.Sum256([]byte(name))
	e := HandlerFailed.New(aggregate, HandlerFailedPayload{
		Subscription: s.name, EventType: i.eventType(), EventID: i.id, AggregateID: i.aggregateID,
		Reason: i.reason, Error: failure, Attempts: i.attempts, Position: i.ref.Position(),
	}, WithID("failed-"+hex.EncodeToString(sum[:16])), func(h *header) {
		if i.id != "" && i.reason != "undecodable" {
			h.cause(i.header)
		}
	})
	// The engine publishes as a handler does: also while the bus drains, and
	// without waiting for room.
	ctx := context.WithValue(s.bus.storing, driver.HandlerKey(), s)
	if err := s.bus.publish(ctx, nil, []DomainEvent{e}); err != nil {
		return s.storeFailed(i, fmt.Errorf("announce the failure: %w", err))
	}
	return verdict{done: true, settle: true}
}

// trimText cuts text to a number of bytes, not inside a character.
func trimText(text string, most int) string {
	for most > 0 && text[most]&0xC0 == 0x80 {
		most--
	}
	return text[:most]
}
