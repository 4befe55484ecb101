// Package notifications is the module that writes to users. It reacts to events
// of identity and billing, publishes nothing, and knows both by their events only.
//
// # Delivery, order, duplicates
//
// The driver's. A message is sent once per event; a mail server that asks for
// patience is tried again, an address that cannot exist becomes a dead letter.
package notifications

import (
	"github.com/tidings-go/tidings"
	billingevents "github.com/tidings-go/tidings/examples/shop/billing/events"
	identityevents "github.com/tidings-go/tidings/examples/shop/identity/events"
	"github.com/tidings-go/tidings/examples/shop/notifications/internal/mail"
)

// Notification is one message to a user.
type Notification = mail.Notification

// Notifications is the module. It may be used from any goroutine.
type Notifications struct{ box *mail.Box }

// New gives the module its face of the bus and subscribes. The bus says at Run
// what is wrong with that.
func New(face *tidings.Module) *Notifications {
	n := &Notifications{box: mail.New()}
	face.Subscribe("welcome", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
		identityevents.UserCreated.On(n.box.Welcome))
	face.Subscribe("subscription", &tidings.SubscribeOptions{StartAt: tidings.StartBeginning},
		billingevents.SubscriptionActivated.On(n.box.Subscription))
	return n
}

// Sent returns what was sent, oldest first.
func (n *Notifications) Sent() []Notification { return n.box.Sent() }
