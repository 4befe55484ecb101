package deployments

import (
	"slices"

	"github.com/tidings-go/tidings"
)

// fact is a contract of the suite.
type fact = tidings.Contract[Payload]

// The contracts. Two have a channel each, two share one, and one has two versions:
// the second can be read by handlers of the first, or it cannot.
var (
	placed  = tidings.Define[Payload]("deploys.order.placed", 1, tidings.Repeatable)
	shipped = tidings.Define[Payload]("deploys.order.shipped", 1, tidings.Repeatable)

	opened   = tidings.Define[Payload]("deploys.case.opened", 1, tidings.Repeatable, tidings.Channel("deploys.case"))
	answered = tidings.Define[Payload]("deploys.case.answered", 1, tidings.Repeatable, tidings.Channel("deploys.case"))

	priced         = tidings.Define[Payload]("deploys.item.priced", 1, tidings.Repeatable)
	pricedAnew     = tidings.Define[Payload]("deploys.item.priced", 2, tidings.Repeatable, tidings.ReadsFrom(1))
	pricedReadable = tidings.Define[Payload]("deploys.item.priced", 2, tidings.Repeatable, tidings.ReadsFrom(1), tidings.ReadableFrom(1))
)

// release is what instances run.
type release struct {
	name    string // of the subscription in its module
	former  []string
	handles []fact
	ignores []fact
}

// knows reports whether the release has anything to do with a channel.
func (r *release) knows(channel string) bool {
	return slices.ContainsFunc(slices.Concat(r.handles, r.ignores), func(f fact) bool { return f.Channel() == channel })
}

// reads reports whether the release handles an event.
func (r *release) reads(e *event) bool {
	return slices.ContainsFunc(r.handles, func(f fact) bool {
		return f.Type() == e.eventType && (e.version <= f.Version() || e.readableFrom <= f.Version())
	})
}

// handlesType reports whether the release has a reaction to the type.
func (r *release) handlesType(eventType string) bool {
	return slices.ContainsFunc(slices.Concat(r.handles, r.ignores), func(f fact) bool { return f.Type() == eventType })
}

// passes reports whether the release says that it ignores the type.
func (r *release) passes(eventType string) bool {
	return slices.ContainsFunc(r.ignores, func(f fact) bool { return f.Type() == eventType })
}

// change is what differs between two releases.
type change struct {
	name string
	// before and after are the releases; all is the one of the closing phase.
	before, after, all release
	// published from the beginning, and from when an instance of after runs.
	published, fresh []fact
	// back: the new release is taken back, by release back.
	back *release
	// apart: instances of the two releases must not run at the same time, and the
	// engine refuses it where it can know.
	apart bool
	// forgotten are types that an operator makes the subscription forget at the end.
	forgotten []fact
	// together: the two releases are two services, and each keeps running.
	together bool
}

func handling(facts ...fact) release { return release{name: "view", handles: facts} }

func (r release) ignoring(facts ...fact) release {
	r.ignores = facts
	return r
}

// changes is the table, in the order of its rows.
func changes() []change {
	var all []change
	add := func(c change) {
		if c.all.name == "" {
			c.all = c.after
		}
		all = append(all, c)
	}
	with := func(c change) {
		add(c)
		add(c.takenBack())
	}
	with(change{name: "channel added", before: handling(placed), after: handling(placed, shipped),
		published: []fact{placed}, fresh: []fact{shipped}})
	removed(add, "channel", placed, shipped)
	with(change{name: "type added on a shared channel", before: handling(opened), after: handling(opened, answered),
		published: []fact{opened}, fresh: []fact{answered}})
	removed(add, "type", opened, answered)
	with(change{name: "version up, unreadable for the old", before: handling(priced), after: handling(pricedAnew),
		published: []fact{priced}, fresh: []fact{pricedAnew}})
	with(change{name: "version up, readable for the old", before: handling(priced), after: handling(pricedReadable),
		published: []fact{priced}, fresh: []fact{pricedReadable}})
	with(change{name: "version down, unreadable for the old", before: handling(pricedAnew), after: handling(priced), all: handling(pricedAnew),
		published: []fact{pricedAnew}, fresh: []fact{priced}})
	with(change{name: "version down, readable for the old", before: handling(pricedReadable), after: handling(priced), all: handling(pricedReadable),
		published: []fact{pricedReadable}, fresh: []fact{priced}})

	renamed := change{name: "subscription renamed", before: handling(placed), after: handling(placed), published: []fact{placed}, apart: true}
	renamed.after.name, renamed.after.former = "board", []string{"view"}
	add(renamed)
	renamed.name += ", rolled back"
	renamed.back = &release{name: "view", former: []string{"board"}, handles: []fact{placed}}
	renamed.all = *renamed.back
	add(renamed)

	add(change{name: "two services under one name, a channel each", before: handling(placed), after: handling(shipped), all: handling(placed, shipped),
		published: []fact{placed}, fresh: []fact{shipped}, together: true})
	add(change{name: "two services under one name, a type each", before: handling(opened), after: handling(answered), all: handling(opened, answered),
		published: []fact{opened}, fresh: []fact{answered}, together: true})
	return all
}

// takenBack is the same change, rolled back.
func (c change) takenBack() change {
	back := c.before
	c.name, c.back = c.name+", rolled back", &back
	return c
}

// removed adds the ways in which a release handles one thing less: it says that it
// ignores it; it says nothing; it says nothing and an operator lets it be forgotten.
func removed(add func(change), what string, stays, goes fact) {
	c := change{before: handling(stays, goes), published: []fact{stays, goes}}

	c.name, c.after = what+" removed with Ignored", handling(stays).ignoring(goes)
	add(c)
	c = c.takenBack()
	c.all = c.before
	add(c)

	c.name, c.back, c.after, c.all = what+" removed, nothing said", nil, handling(stays), c.before
	add(c)
	add(c.takenBack())

	c.name, c.all, c.forgotten = what+" removed, then forget-type", c.after, []fact{goes}
	add(c)
}
