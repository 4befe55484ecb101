package deployments

import (
	"errors"

	"github.com/tidings-go/tidings"
)

// instances is how many a service has.
const instances = 3

// Schedules are the ways in which one release follows another, in the order of the
// table.
func Schedules() []string { return []string{stopAndStart, rolling, canary} }

const (
	stopAndStart = "stop and start"
	rolling      = "rolling"
	canary       = "canary for long"
)

// go through a change. The load runs before, meanwhile and after.
func (t *trial) deploy(schedule string) {
	t.Helper()
	c := t.change
	if c.together {
		t.deployBeside(schedule)
		return
	}
	old := t.run(&c.before, instances)
	t.rounds(t.suite.rounds())
	t.flows("under the old release")
	if c.apart && schedule != stopAndStart && t.refuses(&c.after) {
		schedule = stopAndStart
	}
	var fresh []*instance
	switch schedule {
	case stopAndStart:
		t.stop(old...)
		t.rounds(2)
		fresh = t.run(&c.after, instances)
		t.rounds(t.suite.rounds())
		t.flows("under the new release")
	case rolling:
		fresh = t.roll(old, &c.after)
	case canary:
		t.stop(old[0])
		fresh = t.run(&c.after, 1)
		t.rounds(3 * t.suite.rounds())
		t.flows("with the canary beside the old")
		t.lackAll()
		if c.back != nil {
			t.stop(fresh...)
			t.run(c.back, 1)
			t.rounds(t.suite.rounds())
			return
		}
		fresh = append(fresh, t.roll(old[1:], &c.after)...)
	}
	if c.back == nil {
		return
	}
	switch schedule {
	case stopAndStart:
		t.stop(fresh...)
		t.run(c.back, instances)
		t.rounds(t.suite.rounds())
	case rolling:
		t.roll(fresh, c.back)
	}
}

// roll lets instances of a release follow others, one by one.
func (t *trial) roll(old []*instance, r *release) (fresh []*instance) {
	t.Helper()
	for _, i := range old {
		t.stop(i)
		fresh = append(fresh, t.run(r, 1)...)
		t.rounds(t.suite.rounds() / 2)
		t.flows("in the middle of a rolling deployment")
	}
	return fresh
}

// refuses starts an instance that must not run beside those that run, and reports
// whether it was refused: a driver that keeps nothing under the name of a
// subscription cannot know.
func (t *trial) refuses(r *release) bool {
	t.Helper()
	i, err := t.start(r)
	switch {
	case err == nil && t.world.Nameless:
		t.stop(i)
		return false
	case err == nil:
		t.stop(i)
		t.Errorf("the release %s starts beside its former name, want %v", describe(r), tidings.ErrInUse)
	case !errors.Is(err, tidings.ErrInUse):
		t.Errorf("the release %s beside its former name: %v, want %v", describe(r), err, tidings.ErrInUse)
	}
	t.note = "the new name is refused (ErrInUse) while an instance has the former one, so the old ones were stopped first"
	return true
}

// deployBeside starts a second service under the name of the first, and deploys
// both anew.
func (t *trial) deployBeside(schedule string) {
	t.Helper()
	c := t.change
	one := t.run(&c.before, 2)
	t.rounds(t.suite.rounds())
	t.flows("with one service")
	if schedule == canary {
		t.run(&c.after, 1)
		t.rounds(3 * t.suite.rounds())
		t.flows("with an instance of another service beside it")
		t.lackAll()
		return
	}
	other := t.run(&c.after, 2)
	t.rounds(t.suite.rounds())
	t.flows("with two services")
	t.lackAll()
	if schedule == rolling {
		t.roll(one, &c.before)
		t.roll(other, &c.after)
		return
	}
	t.stop(one...)
	t.rounds(2)
	t.run(&c.before, 2)
	t.stop(other...)
	t.rounds(2)
	t.run(&c.after, 2)
	t.rounds(t.suite.rounds())
	t.flows("with two services, deployed anew")
}
