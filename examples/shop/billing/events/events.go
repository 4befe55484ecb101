// Package billingevents is what other modules may know of billing: its events.
//
// # Delivery, order, duplicates
//
// The driver's. Events of one subscription keep their order;
// SubscriptionActivated happens once in its life.
package billingevents

import "github.com/tidings-go/tidings"

// SubscriptionActivatedPayload is what happened when a subscription began.
type SubscriptionActivatedPayload struct {
	SubscriptionID string `json:"subscriptionId"`
	PlanID         string `json:"planId"`
	UserID         string `json:"userId"`
}

// SubscriptionActivated is published when a user's subscription to a plan has
// begun. Its aggregate is the subscription.
var SubscriptionActivated = tidings.Define[SubscriptionActivatedPayload]("billing.subscription.activated", 1, tidings.Once,
	tidings.AggregateFrom(func(p SubscriptionActivatedPayload) string { return p.SubscriptionID }))
