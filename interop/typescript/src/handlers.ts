// Handlers as modules have them: each looks whether it has acted before it acts, by
// aggregateId and eventType.
import { IdentityUserCreatedEvent } from './contracts.js'

type UserCreated = Pick<IdentityUserCreatedEvent, 'aggregateId' | 'payload'> & Partial<Pick<IdentityUserCreatedEvent, 'version' | 'occurredAt'>> & { eventType: string }

// parse reads what a broker brought: a whole event, or its payload alone.
export function parse(eventName: string, text: string): UserCreated {
  const read = JSON.parse(text)
  if (read.payload !== undefined) {
    return { ...read, occurredAt: new Date(read.occurredAt) }
  }
  return { aggregateId: read.userId, eventType: eventName, payload: read }
}

export class OnUserCreatedHandler {
  private readonly done = new Set<string>()
  private suppressed = 0

  constructor(private readonly subscription: string) {}

  async handle(event: UserCreated): Promise<void> {
    const key = `${event.aggregateId} ${event.eventType}`
    if (this.done.has(key)) {
      this.suppressed++
      say({ subscription: this.subscription, suppressed: this.suppressed, userId: event.payload.userId })
      return
    }
    this.done.add(key)
    say({
      subscription: this.subscription,
      userId: event.payload.userId,
      email: event.payload.email,
      name: event.payload.name,
      aggregateId: event.aggregateId,
      version: event.version,
      occurredAt: event.occurredAt?.toISOString(),
    })
  }
}

export function say(line: Record<string, unknown>): void {
  process.stdout.write(JSON.stringify(line) + '\n')
}
